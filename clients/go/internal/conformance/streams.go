package main

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"

	tumbler "tumbler.dev/go"
	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// tick is the time between two messages of a stream.
const tick = 20 * time.Millisecond

// services are guarded services whose streams send messages without end.
type services struct {
	grpc *grpc.Server
	http *http.Server
	told reply
}

func (p *program) serveStreams([]byte) (reply, error) {
	verifier, err := p.opened()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.services == nil {
		if p.services, err = startServices(verifier, p.log); err != nil {
			return nil, err
		}
	}
	return p.services.told, nil
}

type speaker struct {
	tumblerv1.UnimplementedApiKeyServiceServer
}

func (speaker) Watch(_ *tumblerv1.WatchRequest, stream grpc.ServerStreamingServer[tumblerv1.WatchResponse]) error {
	for {
		if err := stream.Send(&tumblerv1.WatchResponse{}); err != nil {
			return err
		}
		time.Sleep(tick)
	}
}

func startServices(verifier *tumbler.Verifier, log *slog.Logger) (*services, error) {
	required := tumbler.RequireScopes("orders:read")
	byGRPC, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	byHTTP, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &services{
		grpc: grpc.NewServer(grpc.StreamInterceptor(tumbler.StreamServerInterceptor(verifier, required))),
		http: &http.Server{
			Handler:           tumbler.Middleware(verifier, required)(http.HandlerFunc(speak)),
			ReadHeaderTimeout: time.Minute,
		},
	}
	tumblerv1.RegisterApiKeyServiceServer(s.grpc, speaker{})
	go func() {
		if err := s.grpc.Serve(byGRPC); err != nil {
			log.Error("gRPC is no longer served", "error", err)
		}
	}()
	go func() {
		if err := s.http.Serve(byHTTP); !errors.Is(err, http.ErrServerClosed) {
			log.Error("HTTP is no longer served", "error", err)
		}
	}()
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	s.told = reply{"grpc": reply{"grpc": port(byGRPC)}, "http": reply{"net/http": port(byHTTP)}}
	return s, nil
}

func speak(w http.ResponseWriter, _ *http.Request) {
	for {
		if _, err := w.Write([]byte("word\n")); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		time.Sleep(tick)
	}
}

func (s *services) stop() {
	s.grpc.Stop()
	s.http.Close()
}
