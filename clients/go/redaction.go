package tumbler

import (
	"regexp"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// quotedKey finds keys in texts from outside. Unlike keyformat.Pattern it also finds them without the prefix, inside a
// longer word, and cut short. Of a secret that is cut before its 20th character, more than 130 bits are left to guess.
var quotedKey = regexp.MustCompile(`(?:[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_)?[0-9A-Za-z]{16}_[0-9A-Za-z]{20,}`)

// redact returns the text with <key> in place of all that looks like a key, of whatever installation. A server, or a
// proxy before it, may quote a presented key or the Verifier's own. The clients in all languages have the same function
// (tests/vectors/redaction.json).
func redact(text string) string {
	return quotedKey.ReplaceAllString(text, "<key>")
}

// redactError returns an error of a call, or one with the same status if the error shows a key. The status then has the
// text without the key, and only the details that show none. Other errors behind it are left out.
func redactError(err error) error {
	found, _ := status.FromError(err)
	copied := found.Proto()
	copied.Message = redact(copied.GetMessage())
	var details []*anypb.Any
	for _, detail := range copied.GetDetails() {
		if !quotedKey.Match(detail.GetValue()) {
			details = append(details, detail)
		}
	}
	text := err.Error()
	if redact(text) == text && len(details) == len(copied.GetDetails()) {
		return err
	}
	copied.Details = details
	return status.ErrorProto(copied)
}
