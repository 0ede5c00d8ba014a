package tumbler

import (
	"slices"
	"strings"
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
	"tumbler.dev/go/internal/verdict"
)

// Code is the outcome of a verification. The zero value is no outcome, and denies.
//
// It is for operators, logs and handlers. Whoever presented the key should not be told it.
type Code int32

// The outcomes; the first that applies, in this order from CodeMalformed on, decides.
const (
	// CodeValid: the key may do what was asked. The only code that allows anything.
	CodeValid = Code(tumblerv1.VerifyCode_VERIFY_CODE_VALID)
	// CodeMalformed: not of a key's form, or its check is wrong: most likely a typing error.
	CodeMalformed = Code(tumblerv1.VerifyCode_VERIFY_CODE_MALFORMED)
	// CodeNotFound: no such key, a wrong secret, or a key of another project than the Verifier's own.
	CodeNotFound = Code(tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND)
	// CodeRevoked: revoked.
	CodeRevoked = Code(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED)
	// CodeSuperseded: rotated, and the grace is over.
	CodeSuperseded = Code(tumblerv1.VerifyCode_VERIFY_CODE_SUPERSEDED)
	// CodeInactive: switched off.
	CodeInactive = Code(tumblerv1.VerifyCode_VERIFY_CODE_INACTIVE)
	// CodeExpired: its expiry has been reached.
	CodeExpired = Code(tumblerv1.VerifyCode_VERIFY_CODE_EXPIRED)
	// CodeEnvironmentMismatch: it belongs to another environment than was asked for.
	CodeEnvironmentMismatch = Code(tumblerv1.VerifyCode_VERIFY_CODE_ENVIRONMENT_MISMATCH)
	// CodeIPNotAllowed: it may not be used from this address, or no address was given.
	CodeIPNotAllowed = Code(tumblerv1.VerifyCode_VERIFY_CODE_IP_NOT_ALLOWED)
	// CodeInsufficientScope: it does not grant a required scope.
	CodeInsufficientScope = Code(tumblerv1.VerifyCode_VERIFY_CODE_INSUFFICIENT_SCOPE)
)

// String returns the code's name without its prefix, VALID or NOT_FOUND for example.
func (c Code) String() string {
	return strings.TrimPrefix(tumblerv1.VerifyCode(c).String(), "VERIFY_CODE_")
}

// Verification is the verdict on a presented key. Scopes and Metadata are the same for all who verify the key, and must
// not be changed; no change of them can change a verdict.
type Verification struct {
	// Valid is true if and only if Code is CodeValid.
	Valid bool
	// Code says why not.
	Code Code

	// What follows is empty with CodeMalformed and CodeNotFound: nothing is told of a key whose secret was not proven.

	KeyID         string
	ProjectID     string
	EnvironmentID string // empty: the key belongs to none
	OwnerID       string // on whose behalf the key acts
	Name          string
	Scopes        []string // all that the key grants, not only what was required
	Metadata      map[string]string
	ExpireTime    time.Time // the first instant at which the key is not accepted; zero: it never expires

	// Cached says that the answer came from what is remembered, without a call.
	Cached bool

	until time.Duration // by the Verifier's clock: an open stream may rest on it until then, while changes are told
}

// record is a proven key. It is shared by many goroutines and never changed.
type record struct {
	verdict.Record
	keyID      string
	ownerID    string
	name       string
	metadata   map[string]string
	expireTime time.Time
	shown      []string // Scopes once more, to hand out: what callers hold is never what decides
}

// newRecord returns what an answer tells of a proven key that was neither revoked nor switched off.
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
	if answer.ExpireTime != nil {
		r.expireTime = answer.ExpireTime.AsTime()
		r.ExpireTime = r.expireTime.UnixMicro()
	}
	if answer.GraceExpireTime != nil {
		r.GraceExpireTime = answer.GraceExpireTime.AsTime().UnixMicro()
	}
	return r
}

// verification returns the verdict with this code; a nil record means that nothing was proven, and CodeNotFound that
// nothing is to be told, since the key is of another project than was demanded.
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
