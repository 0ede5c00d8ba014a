package tumbler

import (
	"errors"
	"strings"
)

// Why a request has no credential.
var (
	errMissingCredential   = errors.New("no credential")
	errAmbiguousCredential = errors.New("more than one credential") // a gateway in front may have checked another one
)

// credential returns the one key of a request, given all its Authorization and X-Api-Key headers. Each header counts,
// whatever it holds. The server has the same rule; tests/vectors/credentials.json tests both.
func credential(authorization, apiKey []string) (string, error) {
	if len(authorization)+len(apiKey) > 1 {
		return "", errAmbiguousCredential
	}
	key := ""
	if len(apiKey) == 1 {
		key = apiKey[0]
	} else if len(authorization) == 1 {
		if scheme, token, _ := strings.Cut(authorization[0], " "); strings.EqualFold(scheme, "bearer") {
			key = token
		}
	}
	if key = strings.Trim(key, " \t"); key == "" {
		return "", errMissingCredential
	}
	return key, nil
}
