// Command conformance lets the common tests of all clients (tests/clients) drive this client. It reads one JSON object
// per line from standard input, and writes an answer to each to standard output, in the order in which they are ready.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	tumbler "tumbler.dev/go"
	"tumbler.dev/go/internal/verdict"
	"tumbler.dev/go/keyformat"
)

const longestLine = 64 << 20 // a line may name ten thousand keys

type request struct {
	ID  json.RawMessage `json:"id"`
	Op  string          `json:"op"`
	raw []byte
}

type reply map[string]any

func main() {
	p := &program{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if err := p.serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type program struct {
	log      *slog.Logger
	mu       sync.Mutex
	verifier *tumbler.Verifier
	target   string
	apiKey   string
	race     *race
	services *services
}

func (p *program) serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, longestLine)
	var writing sync.Mutex
	answers := json.NewEncoder(out)
	var running sync.WaitGroup
	for lines.Scan() {
		request := request{raw: append([]byte(nil), lines.Bytes()...)}
		running.Add(1)
		go func() {
			defer running.Done()
			answer := p.answer(&request)
			if request.ID != nil {
				answer["id"] = request.ID
			}
			writing.Lock()
			defer writing.Unlock()
			if err := answers.Encode(answer); err != nil {
				p.log.Error("an answer was not written", "error", err)
			}
		}()
	}
	p.mu.Lock()
	if p.race != nil {
		p.race.end()
	}
	p.mu.Unlock()
	running.Wait()
	p.replace(nil)
	return lines.Err()
}

func (p *program) answer(r *request) (answer reply) {
	defer func() {
		if failure := recover(); failure != nil {
			answer = reply{"error": "internal", "message": fmt.Sprint(failure)}
		}
	}()
	if err := json.Unmarshal(r.raw, r); err != nil {
		return reply{"error": "internal", "message": err.Error()}
	}
	operation, known := map[string]func(*program, []byte) (reply, error){
		"open":           (*program).open,
		"verify":         (*program).verify,
		"verify_many":    (*program).verifyMany,
		"race_start":     (*program).raceStart,
		"race_stop":      (*program).raceStop,
		"decide":         (*program).decide,
		"well_formed":    (*program).wellFormed,
		"size":           (*program).size,
		"serve":          (*program).serveStreams,
		"bench":          (*program).bench,
		"bench_uncached": (*program).benchUncached,
		"close":          (*program).close,
	}[r.Op]
	if !known {
		return reply{"error": "op"}
	}
	answer, err := operation(p, r.raw)
	if err != nil {
		return reply{"error": kind(err), "message": err.Error()}
	}
	return answer
}

type optionError struct{ error }

func kind(err error) string {
	var option optionError
	switch {
	case errors.As(err, &option):
		return "option"
	case errors.Is(err, tumbler.ErrNotAllowed):
		return "not_allowed"
	case errors.Is(err, tumbler.ErrInvalidRequest):
		return "invalid_request"
	case errors.Is(err, tumbler.ErrUnavailable):
		return "unavailable"
	default:
		return "internal"
	}
}

func (p *program) open(raw []byte) (reply, error) {
	var args struct {
		Target       string   `json:"target"`
		APIKey       string   `json:"api_key"`
		ProjectID    *ids     `json:"project_id"`
		AnyProject   bool     `json:"any_project"`
		CacheSize    *int     `json:"cache_size"`
		CacheBytes   *int     `json:"cache_bytes"`
		MaxStaleness *float64 `json:"max_staleness"`
		Heartbeat    *float64 `json:"heartbeat"`
		Timeout      *float64 `json:"timeout"`
		Watch        *bool    `json:"watch"`
		FixedTTL     *float64 `json:"fixed_ttl"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	options := []tumbler.Option{tumbler.WithAPIKey(args.APIKey), tumbler.WithLogger(p.log)}
	if args.ProjectID != nil {
		options = append(options, tumbler.WithProjectID(*args.ProjectID...))
	}
	if args.AnyProject {
		options = append(options, tumbler.WithAnyProject())
	}
	if args.CacheSize != nil {
		options = append(options, tumbler.WithCacheSize(*args.CacheSize))
	}
	if args.CacheBytes != nil {
		options = append(options, tumbler.WithCacheBytes(*args.CacheBytes))
	}
	for _, span := range []struct {
		ms   *float64
		with func(time.Duration) tumbler.Option
	}{
		{args.MaxStaleness, tumbler.WithMaxStaleness},
		{args.Heartbeat, tumbler.WithHeartbeat},
		{args.Timeout, tumbler.WithTimeout},
		{args.FixedTTL, tumbler.WithFixedTTL},
	} {
		if span.ms != nil {
			options = append(options, span.with(time.Duration(*span.ms*float64(time.Millisecond))))
		}
	}
	if args.Watch != nil && !*args.Watch {
		options = append(options, tumbler.WithoutWatch())
	}
	verifier, err := tumbler.NewVerifier(args.Target, options...)
	if err != nil {
		return nil, optionError{err}
	}
	p.replace(verifier)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target, p.apiKey = args.Target, args.APIKey
	return reply{}, nil
}

func (p *program) close([]byte) (reply, error) {
	p.replace(nil)
	return reply{}, nil
}

func (p *program) replace(verifier *tumbler.Verifier) {
	p.mu.Lock()
	former, services := p.verifier, p.services
	p.verifier, p.services = verifier, nil
	p.mu.Unlock()
	if former != nil {
		former.Close()
	}
	if services != nil {
		services.stop()
	}
}

func (p *program) opened() (*tumbler.Verifier, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verifier == nil {
		return nil, errors.New("no verifier is open")
	}
	return p.verifier, nil
}

// presented holds the common arguments of the operations that verify.
type presented struct {
	Key            string   `json:"key"`
	Keys           []string `json:"keys"`
	Callers        int      `json:"callers"`
	Calls          int      `json:"calls"`
	RequiredScopes []string `json:"required_scopes"`
	ClientIP       string   `json:"client_ip"`
	EnvironmentID  string   `json:"environment_id"`
	ProjectID      *ids     `json:"project_id"`
}

// ids is a list, which JSON may give as a single string.
type ids []string

func (i *ids) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*i = ids{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(i))
}

func (p *program) read(raw []byte) (*tumbler.Verifier, *presented, error) {
	verifier, err := p.opened()
	if err != nil {
		return nil, nil, err
	}
	args := &presented{Callers: 1, Calls: 1}
	return verifier, args, json.Unmarshal(raw, args)
}

func (p *presented) options() []tumbler.VerifyOption {
	options := []tumbler.VerifyOption{
		tumbler.RequireScopes(p.RequiredScopes...),
		tumbler.ClientIP(p.ClientIP),
		tumbler.Environment(p.EnvironmentID),
	}
	if p.ProjectID != nil {
		options = append(options, tumbler.Project(*p.ProjectID...))
	}
	return options
}

func (p *program) verify(raw []byte) (reply, error) {
	verifier, args, err := p.read(raw)
	if err != nil {
		return nil, err
	}
	found, err := verifier.Verify(context.Background(), args.Key, args.options()...)
	if err != nil {
		return nil, err
	}
	answer := reply{
		"valid":          found.Valid,
		"code":           found.Code.String(),
		"key_id":         found.KeyID,
		"project_id":     found.ProjectID,
		"environment_id": found.EnvironmentID,
		"owner_id":       found.OwnerID,
		"name":           found.Name,
		"scopes":         append([]string{}, found.Scopes...),
		"metadata":       map[string]string{},
		"expire_time":    nil,
		"cached":         found.Cached,
	}
	if found.Metadata != nil {
		answer["metadata"] = found.Metadata
	}
	if !found.ExpireTime.IsZero() {
		answer["expire_time"] = found.ExpireTime.UTC().Format(time.RFC3339Nano)
	}
	return answer, nil
}

func (p *program) verifyMany(raw []byte) (reply, error) {
	verifier, args, err := p.read(raw)
	if err != nil {
		return nil, err
	}
	options := args.options()
	keys := make(chan string)
	var mu sync.Mutex
	codes, failures, cached := map[string]int{}, map[string]int{}, 0
	var callers sync.WaitGroup
	for range max(1, args.Callers) {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for key := range keys {
				found, err := verifier.Verify(context.Background(), key, options...)
				mu.Lock()
				if err != nil {
					failures[kind(err)]++
				} else {
					codes[found.Code.String()]++
					if found.Cached {
						cached++
					}
				}
				mu.Unlock()
			}
		}()
	}
	for _, key := range args.Keys {
		keys <- key
	}
	close(keys)
	callers.Wait()
	return reply{"codes": codes, "cached": cached, "errors": failures}, nil
}

func (p *program) raceStart(raw []byte) (reply, error) {
	verifier, args, err := p.read(raw)
	if err != nil {
		return nil, err
	}
	started := startRace(verifier, args)
	p.mu.Lock()
	former := p.race
	p.race = started
	p.mu.Unlock()
	if former != nil {
		former.end()
	}
	return reply{}, nil
}

func (p *program) raceStop([]byte) (reply, error) {
	p.mu.Lock()
	running := p.race
	p.race = nil
	p.mu.Unlock()
	if running == nil {
		return nil, errors.New("no race is under way")
	}
	return running.end(), nil
}

// race is a set of callers that verify a key again and again.
type race struct {
	stop    chan struct{}
	ending  sync.Once
	running sync.WaitGroup
	seen    []sightings // one for each caller
}

type sightings struct {
	calls, cached, valid        int
	lastValidBegan, deniedEnded time.Time
	failures                    map[string]int
}

func startRace(verifier *tumbler.Verifier, args *presented) *race {
	r := &race{stop: make(chan struct{}), seen: make([]sightings, max(1, args.Callers))}
	options := args.options()
	for place := range r.seen {
		r.running.Add(1)
		go func() {
			defer r.running.Done()
			r.seen[place] = r.verify(verifier, args.Key, options)
		}()
	}
	return r
}

func (r *race) verify(verifier *tumbler.Verifier, key string, options []tumbler.VerifyOption) sightings {
	seen := sightings{failures: map[string]int{}}
	for {
		select {
		case <-r.stop:
			return seen
		default:
		}
		began := time.Now()
		found, err := verifier.Verify(context.Background(), key, options...)
		ended := time.Now()
		seen.calls++
		switch {
		case err != nil:
			seen.failures[kind(err)]++
		case found.Valid:
			seen.valid++
			seen.lastValidBegan = began
		case seen.deniedEnded.IsZero():
			seen.deniedEnded = ended
		}
		if err == nil && found.Cached {
			seen.cached++
			runtime.Gosched() // let the Watch stream be read
		} else {
			time.Sleep(200 * time.Microsecond)
		}
	}
}

func (r *race) end() reply {
	r.ending.Do(func() { close(r.stop) })
	r.running.Wait()
	all := sightings{failures: map[string]int{}}
	for _, seen := range r.seen {
		all.calls += seen.calls
		all.cached += seen.cached
		all.valid += seen.valid
		if seen.lastValidBegan.After(all.lastValidBegan) {
			all.lastValidBegan = seen.lastValidBegan
		}
		if !seen.deniedEnded.IsZero() && (all.deniedEnded.IsZero() || seen.deniedEnded.Before(all.deniedEnded)) {
			all.deniedEnded = seen.deniedEnded
		}
		for kind, times := range seen.failures {
			all.failures[kind] += times
		}
	}
	return reply{
		"calls":                 all.calls,
		"cached":                all.cached,
		"valid":                 all.valid,
		"last_valid_began_us":   microseconds(all.lastValidBegan),
		"first_denied_ended_us": microseconds(all.deniedEnded),
		"errors":                all.failures,
	}
}

func microseconds(instant time.Time) any {
	if instant.IsZero() {
		return nil
	}
	return instant.UnixMicro()
}

func (p *program) decide(raw []byte) (reply, error) {
	var vector verdict.Vector
	if err := json.Unmarshal(raw, &vector); err != nil {
		return nil, err
	}
	return reply{"code": tumbler.Code(vector.Decide()).String()}, nil
}

func (p *program) wellFormed(raw []byte) (reply, error) {
	var args presented
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	if key, err := keyformat.Parse(args.Key); err == nil {
		return reply{"well_formed": true, "prefix": key.Prefix, "key_id": key.ID}, nil
	}
	return reply{"well_formed": false}, nil
}

func (p *program) size([]byte) (reply, error) {
	verifier, err := p.opened()
	if err != nil {
		return nil, err
	}
	return reply{"size": verifier.Remembered()}, nil
}

func (p *program) bench(raw []byte) (reply, error) {
	verifier, args, err := p.read(raw)
	if err != nil {
		return nil, err
	}
	return bench(verifier, args)
}

func (p *program) benchUncached(raw []byte) (reply, error) {
	_, args, err := p.read(raw)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	target, apiKey := p.target, p.apiKey
	p.mu.Unlock()
	verifier, err := tumbler.NewVerifier(target,
		tumbler.WithAPIKey(apiKey), tumbler.WithCacheSize(0), tumbler.WithLogger(p.log))
	if err != nil {
		return nil, err
	}
	defer verifier.Close()
	return bench(verifier, args)
}

func bench(verifier *tumbler.Verifier, args *presented) (reply, error) {
	ctx, require := context.Background(), tumbler.RequireScopes(args.RequiredScopes...)
	for range min(args.Calls, 1000) {
		if _, err := verifier.Verify(ctx, args.Key, require); err != nil {
			return nil, err
		}
	}
	cached := 0
	began := time.Now()
	for range args.Calls {
		found, err := verifier.Verify(ctx, args.Key, require)
		if err != nil {
			return nil, err
		}
		if found.Cached {
			cached++
		}
	}
	took := time.Since(began)
	return reply{"ns_per_call": float64(took.Nanoseconds()) / float64(args.Calls), "cached": cached}, nil
}
