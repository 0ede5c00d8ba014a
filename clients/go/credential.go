package tumbler

import (
	"errors"
	"strings"
)

// Why a request has no credential.
var (
	errNoCredential   = errors.New("no credential")
	errTwoCredentials = errors.New("more than one credential") // somebody in between may have judged another
)

// credential returns the one key that comes with a request, by its headers of these names, each of which counts
// whatever it holds. The rule is that of the server; tests/vectors/credentials.json holds both to it.
func credential(authorization, apiKey []string) (string, error) {
	if len(authorization)+len(apiKey) > 1 {
		return "", errTwoCredentials
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
		return "", errNoCredential
	}
	return key, nil
}
