package tumbler

import (
	"slices"
	"strings"
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
	"tumbler.dev/go/internal/verdict"
)

// Code is the outcome of a verification. The zero value is not an outcome, and denies.
//
// It is for operators, logs and handlers. Do not show it to the caller who presented the key.
type Code int32

// The outcomes. If several reasons to deny apply, the first in this order counts, from CodeMalformed on.
const (
	// CodeValid: the key is accepted. It is the only code that allows anything.
	CodeValid = Code(tumblerv1.VerifyCode_VERIFY_CODE_VALID)
	// CodeMalformed: the text does not have the form of a key, or its check is wrong. Most likely a typing error.
	CodeMalformed = Code(tumblerv1.VerifyCode_VERIFY_CODE_MALFORMED)
	// CodeNotFound: no such key, a wrong secret, or a key of a project that is not accepted.
	CodeNotFound = Code(tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND)
	// CodeRevoked: the key is revoked.
	CodeRevoked = Code(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED)
	// CodeSuperseded: the key was rotated, and its grace period is over.
	CodeSuperseded = Code(tumblerv1.VerifyCode_VERIFY_CODE_SUPERSEDED)
	// CodeInactive: the key is switched off.
	CodeInactive = Code(tumblerv1.VerifyCode_VERIFY_CODE_INACTIVE)
	// CodeExpired: the key has expired.
	CodeExpired = Code(tumblerv1.VerifyCode_VERIFY_CODE_EXPIRED)
	// CodeEnvironmentMismatch: the key does not belong to the demanded environment.
	CodeEnvironmentMismatch = Code(tumblerv1.VerifyCode_VERIFY_CODE_ENVIRONMENT_MISMATCH)
	// CodeIPNotAllowed: the key may not be used from this address, or no address was given.
	CodeIPNotAllowed = Code(tumblerv1.VerifyCode_VERIFY_CODE_IP_NOT_ALLOWED)
	// CodeInsufficientScope: the key does not grant a required scope.
	CodeInsufficientScope = Code(tumblerv1.VerifyCode_VERIFY_CODE_INSUFFICIENT_SCOPE)
)

// String returns the code's name without its prefix, VALID or NOT_FOUND for example.
func (c Code) String() string {
	return strings.TrimPrefix(tumblerv1.VerifyCode(c).String(), "VERIFY_CODE_")
}

// Verification is the verdict on a presented key. All callers that verify a key share its Scopes and Metadata. Do not
// modify them; no modification can change a verdict.
type Verification struct {
	// Valid is true if and only if Code is CodeValid.
	Valid bool
	// Code says why a key is not valid.
	Code Code

	// The fields from KeyID to ExpireTime are empty with CodeMalformed and CodeNotFound: the secret was not proven, or
	// the project is not accepted.

	KeyID         string
	ProjectID     string
	EnvironmentID string // empty: the key has no environment
	OwnerID       string // on whose behalf the key acts
	Name          string
	Scopes        []string // all scopes that the key grants, not only the required ones
	Metadata      map[string]string
	ExpireTime    time.Time // the first instant at which the key is not accepted; zero: it never expires

	// Cached is true if the verdict came from the cache, without a call.
	Cached bool

	until time.Duration // by the Verifier's clock: a guarded stream relies on the verdict until then, while it is fresh
}

// record holds the data of a key whose secret was proven. It is immutable and shared by goroutines.
type record struct {
	verdict.Record
	keyID      string
	ownerID    string
	name       string
	metadata   map[string]string
	expireTime time.Time
	shown      []string // a copy of Scopes for callers: what they modify never decides
}

// newRecord returns the record in an answer about a proven key. It does not set Revoked and Inactive: the caller caches
// no record of such a key.
func newRecord(answer *tumblerv1.VerifyResponse) *record {
	r := &record{
		Record: verdict.Record{
			ProjectID:       answer.GetProjectId(),
			EnvironmentID:   answer.GetEnvironmentId(),
			Scopes:          slices.Clone(answer.GetScopes()),
			Networks:        verdict.Networks(answer.GetAllowedCidrs()),
			ExpireTime:      verdict.Never,
			GraceExpireTime: verdict.Never,
		},
		keyID:    answer.GetKeyId(),
		ownerID:  answer.GetOwnerId(),
		name:     answer.GetName(),
		metadata: answer.GetMetadata(),
		shown:    slices.Clone(answer.GetScopes()),
	}
	if answer.ExpireTime.IsValid() {
		r.expireTime = answer.ExpireTime.AsTime()
		r.ExpireTime = r.expireTime.UnixMicro()
	}
	if answer.GraceExpireTime.IsValid() {
		r.GraceExpireTime = answer.GraceExpireTime.AsTime().UnixMicro()
	}
	return r
}

// verification returns a verdict with this code. The verdict has no details if the record is nil (nothing was proven)
// or the code is CodeNotFound (the key belongs to a project that was not demanded).
func (r *record) verification(code Code, cached bool) *Verification {
	if r == nil || code == CodeNotFound {
		return &Verification{Code: code, Cached: cached}
	}
	return &Verification{
		Valid:         code == CodeValid,
		Code:          code,
		KeyID:         r.keyID,
		ProjectID:     r.ProjectID,
		EnvironmentID: r.EnvironmentID,
		OwnerID:       r.ownerID,
		Name:          r.name,
		Scopes:        r.shown,
		Metadata:      r.metadata,
		ExpireTime:    r.expireTime,
		Cached:        cached,
	}
}
