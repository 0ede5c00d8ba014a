package tumbler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
	"tumbler.dev/go/internal/verdict"
)

const (
	// mostUnderWay is the maximum number of calls in flight. Further misses queue, and go out as one batch: under load
	// the server gets batches, and without load nothing waits.
	mostUnderWay = 4

	// mostInBatch is the maximum number of keys in a batch. The server accepts more, but all keys of a batch wait for
	// the slowest.
	mostInBatch = 500

	// mostBytes is the maximum total size of the requests in a batch. A larger request goes by itself.
	mostBytes = 256 << 10

	// cursorBytes is the room for the Watch stream's cursor in a request.
	cursorBytes = 128
)

// flight is a pending verification by the server, shared by all callers that wait for it.
type flight struct {
	keyID  string // shares the memory of key: do not keep it longer than the flight
	key    string
	digest digest
	demand verdict.Demand
	most   int  // the maximum size of its next batch: half the size of its last one
	eager  int  // the number of waiting callers; guarded by calls.mu
	sent   bool // guarded by calls.mu
	done   chan struct{}

	// Set before done is closed.
	answer answer
	err    error
}

// answer is the result of a call.
type answer struct {
	code   Code
	record *record // nil: nothing was proven
	live   *entry  // set if the key is not revoked, superseded, inactive or expired: the verdict depends on the demand
}

// calls verifies keys by calls to the server. Callers that present the same key at the same time share one call.
type calls struct {
	service  tumblerv1.ApiKeyServiceClient
	memory   *memory
	projects *projects
	timeout  time.Duration
	suspect  func()                           // reports a call that ran into its deadline
	doubt    func(all bool, keyIDs ...string) // queues the keys of guarded streams to be verified again
	ctx      context.Context                  // ends when the Verifier is closed

	mu       sync.Mutex
	closed   bool
	underWay int
	waiting  []*flight
	flights  map[string]*flight // by key id: the flights that callers may join
	running  sync.WaitGroup
}

// join returns a flight for this key, and whether another caller started it. Each join needs a leave.
//
// A flight that was sent before is shared only while the Watch stream is fresh, so that no change since is missed.
func (c *calls) join(keyID, key string, d *digest, demand *verdict.Demand) (f *flight, joined bool) {
	vouched := c.memory.vouched()
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.flights[keyID]; ok && same(&f.digest, d) && (vouched || !f.sent) {
		f.eager++
		return f, true
	}
	f = &flight{
		keyID:  keyID,
		key:    key,
		digest: *d,
		demand: clone(demand),
		most:   mostInBatch,
		eager:  1,
		done:   make(chan struct{}),
	}
	switch {
	case c.closed:
		f.end(answer{}, errClosed)
		return f, false
	case c.underWay < mostUnderWay:
		c.underWay++
		c.running.Add(1)
		f.sent = true
		go c.run([]*flight{f})
	default:
		c.waiting = append(c.waiting, f)
	}
	// A text with the id of another flight but a different secret is not shared: it must not displace the real key.
	if other, taken := c.flights[keyID]; !taken || same(&other.digest, d) {
		c.flights[keyID] = f
	}
	return f, false
}

// leave records that a caller no longer waits.
func (c *calls) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.eager--
}

// outdate keeps later callers from joining a flight whose answer may be older than a change.
func (c *calls) outdate(events []*tumblerv1.KeyEvent, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if all {
		clear(c.flights)
	}
	for _, event := range events {
		delete(c.flights, event.GetKeyId())
	}
}

// close waits until all flights have ended. The context must have ended before: that fails them.
func (c *calls) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.running.Wait()
}

// run makes one call after another until the queue is empty.
func (c *calls) run(batch []*flight) {
	defer c.running.Done()
	for ; batch != nil; batch = c.next() {
		if len(batch) == 1 {
			c.ask(batch[0])
		} else {
			c.askTogether(batch)
		}
	}
}

// next takes the next batch from the queue. If there is none, it gives up its slot. Flights with different limits do
// not share a batch: retried flights stay apart from new ones, and from those retried after a larger batch.
func (c *calls) next() (batch []*flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for size := 0; len(c.waiting) > 0; {
		f := c.waiting[0]
		if f.eager > 0 {
			size += proto.Size(c.request(f, "")) + cursorBytes
			if len(batch) > 0 && (len(batch) >= f.most || f.most != batch[0].most || size > mostBytes) {
				break
			}
			f.sent = true
			batch = append(batch, f)
		} else {
			c.withdraw(f) // all its callers have given up
		}
		c.waiting[0] = nil // the array must not keep the key in memory
		c.waiting = c.waiting[1:]
	}
	if batch == nil {
		c.underWay--
	}
	return batch
}

func (c *calls) ask(f *flight) {
	began := c.memory.mark()
	response, err := c.verify(f, began)
	if began.cursor != "" && isInvalid(err) {
		// Either the demand is wrong, or the cursor is (an older backup was restored). A call without it shows which.
		refused := began.cursor
		began.cursor = ""
		if response, err = c.verify(f, began); err == nil {
			c.memory.dropCursor(refused)
			c.outdate(nil, true)
			c.doubt(true)
		}
	}
	if err == nil {
		var a answer
		if a, err = c.take(f, response, began); err == nil {
			c.land(f, a, nil)
			return
		}
	}
	c.land(f, answer{}, err)
}

func (c *calls) verify(f *flight, began mark) (*tumblerv1.VerifyResponse, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	response, err := c.service.Verify(ctx, c.request(f, began.cursor))
	if err != nil {
		return nil, c.failure(err)
	}
	return response, nil
}

func (c *calls) askTogether(batch []*flight) {
	began := c.memory.mark()
	request := &tumblerv1.BatchVerifyRequest{Requests: make([]*tumblerv1.VerifyRequest, len(batch))}
	for place, f := range batch {
		request.Requests[place] = c.request(f, began.cursor)
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	response, err := c.service.BatchVerify(ctx, request)
	halve := err != nil && c.ctx.Err() == nil && isOfBatch(err)
	if err != nil {
		err = c.failure(err)
	} else if len(response.GetResponses()) != len(batch) {
		err = errConfused
	}
	var again []*flight
	for place, f := range batch {
		var a answer
		failure := err
		if err == nil {
			a, failure = c.take(f, response.Responses[place], began)
		}
		// A batch leaves an item undecided if its answer has no room for it, or if the item has the wrong form.
		if halve || errors.Is(failure, errUndecided) {
			again = append(again, f)
		} else {
			c.land(f, a, failure)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range again {
		f.most, f.sent = (len(batch)+1)/2, false
	}
	c.waiting = append(again, c.waiting...) // at the front: they have waited longest
}

// take checks an answer, and caches its record if it may be cached.
func (c *calls) take(f *flight, response *tumblerv1.VerifyResponse, began mark) (answer, error) {
	a := answer{code: Code(response.GetCode())}
	if response.GetValid() != (a.code == CodeValid) {
		return answer{}, errConfused
	}
	if response.GetAnyProject() && c.projects.unsaid() {
		return answer{}, errUnsaid
	}
	switch a.code {
	case Code(tumblerv1.VerifyCode_VERIFY_CODE_UNSPECIFIED):
		return answer{}, errUndecided
	case CodeMalformed, CodeNotFound:
		c.deny(f)
		return a, nil
	}
	if response.GetKeyId() != f.keyID || response.GetCheckTime() == nil {
		return answer{}, errConfused
	}
	if !c.projects.accepts(response.GetProjectId()) {
		c.deny(f)
		return answer{code: CodeNotFound}, nil
	}
	a.record = newRecord(response)
	switch a.code {
	case CodeValid, CodeEnvironmentMismatch, CodeIPNotAllowed, CodeInsufficientScope:
		a.live = &entry{
			record:   a.record,
			digest:   f.digest,
			asked:    began.at,
			answered: response.GetCheckTime().AsTime().UnixMicro(),
			size:     proto.Size(response) + entryBytes,
		}
		c.memory.remember(a.live, began, response.GetRevision(), response.GetCacheTtl().AsDuration())
	default:
		c.deny(f)
	}
	return a, nil
}

// deny evicts a key that the server has denied. If it was cached, its guarded streams are verified again.
func (c *calls) deny(f *flight) {
	if c.memory.forget(f.keyID, &f.digest) {
		c.doubt(false, f.keyID)
	}
}

// land delivers the result to all waiting callers.
func (c *calls) land(f *flight, a answer, err error) {
	c.mu.Lock()
	c.withdraw(f)
	c.mu.Unlock()
	f.end(a, err)
}

// withdraw keeps a flight from being joined. The lock must be held.
func (c *calls) withdraw(f *flight) {
	if c.flights[f.keyID] == f {
		delete(c.flights, f.keyID)
	}
}

func (c *calls) failure(err error) error {
	if c.ctx.Err() != nil {
		return errClosed
	}
	if status.Code(err) == codes.DeadlineExceeded {
		c.suspect()
	}
	return classify(err)
}

func (f *flight) end(a answer, err error) {
	f.answer, f.err = a, err
	close(f.done)
}

func (c *calls) request(f *flight, cursor string) *tumblerv1.VerifyRequest {
	request := &tumblerv1.VerifyRequest{
		Key:            f.key,
		ProjectId:      c.projects.only(),
		EnvironmentId:  f.demand.EnvironmentID,
		RequiredScopes: f.demand.RequiredScopes,
		ClientIp:       f.demand.ClientIP,
	}
	if cursor != "" {
		request.Consistency = &tumblerv1.Consistency{
			Requirement: &tumblerv1.Consistency_AtLeastAsFresh{AtLeastAsFresh: cursor},
		}
	}
	return request
}

// verdict returns the verdict for one caller: the server's, or, for a caller that joined and may have other demands, a
// decision on the record.
func (f *flight) verdict(demand *verdict.Demand, now time.Duration, joined bool) *Verification {
	a := &f.answer
	if a.record != nil && demand.Excludes(a.record.ProjectID) {
		return a.record.verification(CodeNotFound, false)
	}
	if joined && a.live != nil {
		code := Code(verdict.Decide(&a.record.Record, demand, a.live.serverTime(now)))
		return a.live.lasting(a.record.verification(code, false))
	}
	return a.live.lasting(a.record.verification(a.code, false))
}

// wait returns when the flight has landed or the context has ended.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}
