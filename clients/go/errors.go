package tumbler

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The errors of Verify, to be tested with errors.Is. The returned error also wraps the cause, a gRPC status if there is
// one. Each means that nothing was decided: deny the request, or retry. None contains a key: if the server's status
// quotes one, a copy without it is wrapped.
var (
	// ErrUnavailable: the server is unreachable, overloaded or does not answer in time, the context has ended, or the
	// Verifier is closed. A retry may help.
	ErrUnavailable = errors.New("tumbler: keys cannot be verified at the moment")

	// ErrNotAllowed: the server refuses the Verifier's own key. It is unknown, revoked or expired, or lacks the scope
	// tumbler:keys:verify. Or it sees the keys of all projects, and no option says which projects to accept.
	ErrNotAllowed = errors.New("tumbler: the server refused the verifier's own key")

	// ErrInvalidRequest: a required scope, the address, the environment or a project has the wrong form. Either the
	// program has a bug, or it passed on a client's input unchecked.
	ErrInvalidRequest = errors.New("tumbler: the request is invalid")
)

var (
	errClosed         = fmt.Errorf("%w: the verifier is closed", ErrUnavailable)
	errUndecided      = fmt.Errorf("%w: the server did not decide", ErrUnavailable)
	errInvalidProject = fmt.Errorf("%w: Project: must be one or more project ids, none of them empty",
		ErrInvalidRequest)
	errNotInTime = fmt.Errorf("%w: the key of an open stream could not be verified again in time", ErrUnavailable)
	errOldAnswer = fmt.Errorf("%w: the server's answer is too old", ErrUnavailable)
	errBadAnswer = fmt.Errorf("%w: the server's answer does not match the request", ErrUnavailable)
)

// classify wraps the error of a failed call in one of the exported errors.
func classify(err error) error {
	err = redactError(err)
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return fmt.Errorf("%w: %w", ErrNotAllowed, err)
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// shouldSplit reports whether half of a failed batch may succeed. It may not if the server is unreachable or refuses
// the Verifier's key.
func shouldSplit(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unauthenticated, codes.PermissionDenied:
		return false
	default:
		return true
	}
}

func isInvalid(err error) bool     { return errors.Is(err, ErrInvalidRequest) }
func isUnavailable(err error) bool { return errors.Is(err, ErrUnavailable) }
