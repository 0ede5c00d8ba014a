package tumbler

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

func TestAGRPCStreamEndsThoughItsCallerDoesNotRead(t *testing.T) {
	w, stream := listening(t)
	h := &handling{handle: func(_ any, stream grpc.ServerStream) error {
		for {
			if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 32<<10))); err != nil {
				return err
			}
		}
	}}
	call := h.serve(t, w)
	w.eventually("it waits for the caller", func() bool { return goroutines("transport.(*writeQuota)") != "" })
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	select {
	case err := <-h.over:
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("the handler was told %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the handler goes on")
	}
	w.eventually("nothing is left", func() bool {
		return w.verifier.sessions.len() == 0 && goroutines("tumbler.dev/go.(*heldStream)", "transport.(*writeQuota)") == ""
	})
	var err error
	for err == nil {
		err = call.RecvMsg(&wrapperspb.BytesValue{})
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the caller was told %v", err)
	}
}

// A handler that continues after the end has at most one send and one receive in flight.
func TestAnEndedGRPCStreamWaitsForNothingMore(t *testing.T) {
	w, stream := listening(t)
	h := &handling{handle: func(_ any, stream grpc.ServerStream) error {
		<-stream.Context().Done()
		for range 100 {
			stream.RecvMsg(&emptypb.Empty{})
			stream.SendMsg(&emptypb.Empty{})
		}
		w.eventually("nothing is left", func() bool { return goroutines("tumbler.dev/go.(*heldStream)") == "" })
		return nil
	}}
	call := h.serve(t, w)
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	if err := call.RecvMsg(&emptypb.Empty{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

// A panic while a message is sent reaches the handler, as it does without the guard. It does not end the program.
func TestAPanicWhileSendingIsTheHandlers(t *testing.T) {
	w, _ := listening(t)
	h := &handling{handle: func(_ any, stream grpc.ServerStream) (err error) {
		defer func() { err = status.Error(codes.Internal, fmt.Sprint(recover())) }()
		return (&heldStream{panicking{stream}, stream.Context()}).SendMsg(&emptypb.Empty{})
	}}
	if err := h.serve(t, w).RecvMsg(&emptypb.Empty{}); status.Convert(err).Message() != "codec" {
		t.Errorf("got %v", err)
	}
}

type panicking struct{ grpc.ServerStream }

func (panicking) SendMsg(any) error { panic("codec") }
