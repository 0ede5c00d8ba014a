// Package keyformat checks the form of Tumbler keys: <prefix>_<id>_<secret><check>, for example
// acme_live_<16 characters>_<49 characters>.
//
// It needs no server. A well-formed key may still be unknown, revoked or expired. A malformed one can be refused
// without a call: the check detects every single typing error. Anyone can compute the check, so it proves nothing.
package keyformat

import (
	"errors"
	"hash/crc32"
	"regexp"
)

// The lengths of a key's parts, in characters. All of them are ASCII.
const (
	IDLength     = 16
	SecretLength = 43
	CheckLength  = 6

	// MaxLength is the length of the longest key.
	MaxLength = longestPrefix + 1 + IDLength + 1 + SecretLength + CheckLength

	// MinLength is the length of the shortest key.
	MinLength = shortestPrefix + 1 + IDLength + 1 + SecretLength + CheckLength

	shortestPrefix = 2
	longestPrefix  = 32
	longestPart    = 16
	longestSecond  = 15
)

// alphabet holds the 62 digits of ids, secrets and checks, in order of value.
const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Pattern finds keys in other text, for secret scanners and log filters. It does not verify the check; Parse does.
var Pattern = regexp.MustCompile(`\b[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}\b`)

// ErrMalformed means that a text is not a key. Errors of this kind never contain any part of the text.
var ErrMalformed = errors.New("malformed key")

// Key holds the parts of a key that are not secret.
type Key struct {
	// Prefix was chosen when the key was created, acme_live for example.
	Prefix string
	// ID is the id by which the key is managed. It is not secret.
	ID string
}

// Parse splits a key into its parts, after verifying its form and its check. It returns ErrMalformed if the text is not
// exactly one key; surrounding white space is an error too.
//
// The parts share the text's memory. To keep one longer than the key, clone it (strings.Clone).
func Parse(text string) (Key, error) {
	id, ok := PeekID(text)
	if !ok {
		return Key{}, ErrMalformed
	}
	rest := text[len(text)-SecretLength-CheckLength:]
	prefix := text[:len(text)-len(rest)-IDLength-2]
	if !isPrefix(prefix) || !isBase62(id) || !isBase62(rest) {
		return Key{}, ErrMalformed
	}
	body, check := text[:len(text)-CheckLength], text[len(text)-CheckLength:]
	if checksum(body) != [CheckLength]byte([]byte(check)) {
		return Key{}, ErrMalformed
	}
	return Key{Prefix: prefix, ID: id}, nil
}

// WellFormed reports whether Parse accepts the text.
func WellFormed(text string) bool {
	_, err := Parse(text)
	return err == nil
}

// PeekID returns the id if the text is a key. It checks only the text's length and its last two underscores, which
// takes a few nanoseconds: enough for a lookup.
func PeekID(text string) (id string, ok bool) {
	if len(text) < MinLength || len(text) > MaxLength {
		return "", false
	}
	end := len(text) - SecretLength - CheckLength - 1
	begin := end - IDLength
	if text[end] != '_' || text[begin-1] != '_' {
		return "", false
	}
	return text[begin:end], true
}

// checksum returns the check of a text: its CRC-32 as six base62 digits, most significant first.
func checksum(body string) (digits [CheckLength]byte) {
	rest := crc32.ChecksumIEEE([]byte(body))
	for place := CheckLength - 1; place >= 0; place-- {
		digits[place] = alphabet[rest%uint32(len(alphabet))]
		rest /= uint32(len(alphabet))
	}
	return digits
}

// isPrefix reports whether a text matches [a-z][a-z0-9]{1,15}(_[a-z0-9]{1,15})?.
func isPrefix(text string) bool {
	first := 0
	for first < len(text) && isLowerOrDigit(text[first]) {
		first++
	}
	if first < shortestPrefix || first > longestPart || text[0] < 'a' {
		return false
	}
	if first == len(text) {
		return true
	}
	second := text[first+1:]
	if text[first] != '_' || len(second) < 1 || len(second) > longestSecond {
		return false
	}
	for place := range len(second) {
		if !isLowerOrDigit(second[place]) {
			return false
		}
	}
	return true
}

func isBase62(text string) bool {
	for place := range len(text) {
		c := text[place]
		if !isLowerOrDigit(c) && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

func isLowerOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
}
