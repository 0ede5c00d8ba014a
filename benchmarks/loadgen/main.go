// Command loadgen calls one unary gRPC method with the bodies of a file, each another one, and says what came back.
//
// h2load sends one fixed body. This is for what needs a different key in each call. It sends the bodies as they are and
// does not decode the answers, so that it costs little beside what it measures. One JSON object on stdout:
// calls, seconds, latencies in milliseconds, and how often each (status, verdict) came.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw passes messages through as the bytes that they are.
type raw struct{}

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (raw) Name() string { return "proto" }

type report struct {
	Calls    int            `json:"calls"`
	Seconds  float64        `json:"seconds"`
	P50      float64        `json:"p50"`
	P99      float64        `json:"p99"`
	P999     float64        `json:"p999"`
	Longest  float64        `json:"longest"`
	Outcomes map[string]int `json:"outcomes"`
}

type caller struct {
	took     []time.Duration
	outcomes map[string]int
}

func main() {
	target := flag.String("target", "", "address of the server")
	method := flag.String("method", "", "full name of the method: /package.Service/Method")
	bodies := flag.String("bodies", "", "file of requests, each after its length (four bytes, big-endian)")
	first := flag.Int("first", 0, "place of the first request that is sent")
	count := flag.Int("count", 0, "how many calls to make, going round the file; 0: each request from the first on, once")
	seconds := flag.Float64("seconds", 0, "make calls for so long instead, going round the file")
	inFlight := flag.Int("in-flight", 1, "how many calls at the same time")
	connections := flag.Int("connections", 1, "over how many connections")
	pause := flag.Duration("pause", 0, "what each caller waits between two calls")
	header := flag.String("authorization", "", "the authorization header; - reads it from stdin")
	flag.Parse()
	log.SetFlags(0)

	if *header == "-" {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			log.Fatal("no header on stdin")
		}
		*header = line[:len(line)-1]
	}
	messages, err := read(*bodies)
	if err != nil {
		log.Fatalf("%s: %v", *bodies, err)
	}
	limit := *count
	if limit == 0 {
		limit = len(messages) - *first
	}
	if *seconds > 0 {
		limit = 1 << 40
	}

	clients := make([]*grpc.ClientConn, *connections)
	for i := range clients {
		clients[i], err = grpc.NewClient(*target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{}), grpc.MaxCallRecvMsgSize(64<<20)),
			grpc.WithNoProxy())
		if err != nil {
			log.Fatal(err)
		}
	}
	ctx := context.Background()
	if *header != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", *header)
	}
	for _, client := range clients { // dialling is not what is measured
		client.Connect()
		for state := client.GetState(); state.String() != "READY"; state = client.GetState() {
			wait, cancel := context.WithTimeout(ctx, 10*time.Second)
			if !client.WaitForStateChange(wait, state) {
				log.Fatal("the server does not answer")
			}
			cancel()
		}
	}

	callers := make([]caller, *inFlight)
	var next atomic.Int64
	var done sync.WaitGroup
	began := time.Now()
	until := began.Add(time.Duration(*seconds * float64(time.Second)))
	for i := range callers {
		done.Add(1)
		go func() {
			defer done.Done()
			callers[i] = call(ctx, clients[i%len(clients)], *method, func() []byte {
				place := next.Add(1) - 1
				if place >= int64(limit) || (*seconds > 0 && time.Now().After(until)) {
					return nil
				}
				if *pause > 0 {
					time.Sleep(*pause)
				}
				return messages[(int64(*first)+place)%int64(len(messages))]
			})
		}()
	}
	done.Wait()
	total := sum(callers, time.Since(began))
	for _, client := range clients {
		client.Close()
	}
	if err := json.NewEncoder(os.Stdout).Encode(total); err != nil {
		log.Fatal(err)
	}
}

func call(ctx context.Context, client *grpc.ClientConn, method string, next func() []byte) caller {
	made := caller{outcomes: map[string]int{}}
	for body := next(); body != nil; body = next() {
		var answer []byte
		began := time.Now()
		err := client.Invoke(ctx, method, &body, &answer)
		made.took = append(made.took, time.Since(began))
		if err != nil {
			made.outcomes[status.Code(err).String()]++
		} else {
			made.outcomes[fmt.Sprintf("OK %d", code(answer))]++
		}
	}
	return made
}

func sum(callers []caller, took time.Duration) report {
	total := report{Seconds: took.Seconds(), Outcomes: map[string]int{}}
	var all []time.Duration
	for _, one := range callers {
		all = append(all, one.took...)
		for outcome, times := range one.outcomes {
			total.Outcomes[outcome] += times
		}
	}
	total.Calls = len(all)
	if len(all) == 0 {
		return total
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		return all[min(len(all)-1, int(share*float64(len(all))))].Seconds() * 1e3
	}
	total.P50, total.P99, total.P999, total.Longest = at(0.5), at(0.99), at(0.999), all[len(all)-1].Seconds()*1e3
	return total
}

// code returns field 2 of a message, VerifyResponse's verdict. Fields come in any order, and are numbers, texts or messages.
func code(message []byte) uint64 {
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 {
			return 0
		}
		value, m := binary.Uvarint(message[n:])
		if m <= 0 {
			return 0
		}
		message = message[n+m:]
		switch tag & 7 {
		case 0:
			if tag>>3 == 2 {
				return value
			}
		case 2:
			if value > uint64(len(message)) {
				return 0
			}
			message = message[value:]
		default:
			return 0
		}
	}
	return 0
}

func read(path string) ([][]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 1<<20)
	var messages [][]byte
	for {
		var size uint32
		if err := binary.Read(reader, binary.BigEndian, &size); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		message := make([]byte, size)
		if _, err := io.ReadFull(reader, message); err != nil {
			return nil, err
		}
		messages = append(messages, message)
	}
	if len(messages) == 0 {
		return nil, errors.New("no requests in it")
	}
	return messages, nil
}
