package tumbler

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What Verify fails with, by errors.Is; the cause is wrapped beside it, a gRPC status where there is one. Each of them
// means that nothing was decided, so that the request at hand must be denied or tried again. None shows a key.
var (
	// ErrUnavailable: the server cannot be reached, does not answer in time or has too much to do, the context has
	// ended, or the Verifier is closed. Trying again may help.
	ErrUnavailable = errors.New("tumbler: keys cannot be verified at the moment")

	// ErrNotAllowed: the Verifier's own key is refused. It is unknown, revoked or expired, or lacks the scope
	// tumbler:keys:verify; or it sees the keys of all projects, and it was not said whose to accept.
	ErrNotAllowed = errors.New("tumbler: the server refused the verifier's own key")

	// ErrInvalidRequest: a required scope, the address, the environment or a project is not of the right form. A bug of the
	// caller, or something of a client's that was passed on unchecked.
	ErrInvalidRequest = errors.New("tumbler: the request is invalid")
)

var (
	errClosed    = fmt.Errorf("%w: the verifier is closed", ErrUnavailable)
	errUndecided = fmt.Errorf("%w: the server did not decide", ErrUnavailable)
	errNameless  = fmt.Errorf("%w: Project: must be one or more project ids, none of them empty", ErrInvalidRequest)
	errNotInTime = fmt.Errorf("%w: the key of an open stream could not be verified again in time", ErrUnavailable)
	errConfused  = fmt.Errorf("%w: the server's answer does not match the request", ErrUnavailable)
)

// classify says which of the errors a failed call is.
func classify(err error) error {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return fmt.Errorf("%w: %w", ErrNotAllowed, err)
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// isOfBatch says whether a batch that failed so may do better in halves: neither is the server out of reach nor the
// Verifier refused.
func isOfBatch(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unauthenticated, codes.PermissionDenied:
		return false
	default:
		return true
	}
}

func isInvalid(err error) bool     { return errors.Is(err, ErrInvalidRequest) }
func isUnavailable(err error) bool { return errors.Is(err, ErrUnavailable) }
