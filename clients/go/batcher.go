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
	// maxCallsInFlight is the maximum number of calls in flight. Further misses queue, and go out as one batch: under
	// load the server gets batches, and without load nothing waits.
	maxCallsInFlight = 4

	// maxBatchKeys is the maximum number of keys in a batch. The server accepts more, but all keys of a batch wait for
	// the slowest.
	maxBatchKeys = 500

	// maxBatchBytes is the maximum total size of the requests in a batch. A larger request goes by itself.
	maxBatchBytes = 256 << 10

	// cursorBytes is the room for the Watch stream's cursor in a request.
	cursorBytes = 128
)

// flight is a pending verification by the server, shared by all callers that wait for it.
type flight struct {
	keyID    string // shares the memory of key: do not keep it longer than the flight
	key      string
	digest   digest
	demand   verdict.Demand
	maxBatch int  // the maximum size of its next batch: half the size of its last one
	waiters  int  // the number of waiting callers; guarded by batcher.mu
	sent     bool // guarded by batcher.mu

	// Set when its call is about to be sent.
	sentAt        time.Duration
	knownRevision int64 // of the latest event that the stream had delivered for the key; 0: none

	done chan struct{}

	// Set before done is closed.
	answer answer
	err    error
}

// answer is the result of a call.
type answer struct {
	code   Code
	record *record // nil: nothing was proven
	entry  *entry  // set if the key is not revoked, superseded, inactive or expired: the verdict depends on the demand
}

// batcher verifies keys by calls to the server. Callers that present the same key at the same time share one call.
type batcher struct {
	service   tumblerv1.ApiKeyServiceClient
	cache     *cache
	projects  *projects
	timeout   time.Duration
	reconnect func()                           // reports a call that ran into its deadline
	onChange  func(all bool, keyIDs ...string) // queues the keys of guarded streams to be verified again
	ctx       context.Context                  // ends when the Verifier is closed

	mu            sync.Mutex
	closed        bool
	callsInFlight int
	queue         []*flight
	joinable      map[string]*flight // by key id: the flights that callers may join
	running       sync.WaitGroup
}

// join returns a flight for this key, and whether another caller started it. Each join needs a leave.
//
// A flight that was sent before is shared only while the Watch stream is fresh, so that no change since is missed.
func (b *batcher) join(keyID, key string, d *digest, demand *verdict.Demand) (f *flight, joined bool) {
	isFresh := b.cache.isFreshNow()
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, ok := b.joinable[keyID]; ok && same(&f.digest, d) && (isFresh || !f.sent) {
		f.waiters++
		return f, true
	}
	f = &flight{
		keyID:    keyID,
		key:      key,
		digest:   *d,
		demand:   clone(demand),
		maxBatch: maxBatchKeys,
		waiters:  1,
		done:     make(chan struct{}),
	}
	switch {
	case b.closed:
		f.finish(answer{}, errClosed)
		return f, false
	case b.callsInFlight < maxCallsInFlight:
		b.callsInFlight++
		b.running.Add(1)
		f.sent = true
		go b.run([]*flight{f})
	default:
		b.queue = append(b.queue, f)
	}
	// A text with the id of another flight but a different secret is not shared: it must not displace the real key.
	if other, taken := b.joinable[keyID]; !taken || same(&other.digest, d) {
		b.joinable[keyID] = f
	}
	return f, false
}

// leave records that a caller no longer waits.
func (b *batcher) leave(f *flight) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.waiters--
}

// detach keeps later callers from joining a flight whose answer may be older than a change.
func (b *batcher) detach(events []*tumblerv1.KeyEvent, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if all {
		clear(b.joinable)
	}
	for _, event := range events {
		delete(b.joinable, event.GetKeyId())
	}
}

// close waits until all flights have ended. The context must have ended before: that fails them.
func (b *batcher) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.running.Wait()
}

// run makes one call after another until the queue is empty.
func (b *batcher) run(batch []*flight) {
	defer b.running.Done()
	for ; batch != nil; batch = b.nextBatch() {
		if len(batch) == 1 {
			b.sendOne(batch[0])
		} else {
			b.sendBatch(batch)
		}
	}
}

// nextBatch takes the next batch from the queue. If there is none, it gives up its slot. Flights with different limits
// do not share a batch: retried flights stay apart from new ones, and from those retried after a larger batch.
func (b *batcher) nextBatch() (batch []*flight) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for size := 0; len(b.queue) > 0; {
		f := b.queue[0]
		if f.waiters > 0 {
			size += proto.Size(b.request(f, "")) + cursorBytes
			if len(batch) > 0 && (len(batch) >= f.maxBatch || f.maxBatch != batch[0].maxBatch || size > maxBatchBytes) {
				break
			}
			f.sent = true
			batch = append(batch, f)
		} else {
			b.leaveJoinable(f) // all its callers have given up
		}
		b.queue[0] = nil // the array must not keep the key in memory
		b.queue = b.queue[1:]
	}
	if batch == nil {
		b.callsInFlight--
	}
	return batch
}

func (b *batcher) sendOne(f *flight) {
	pos := b.cache.position(f)
	response, err := b.verify(f, pos)
	if pos.cursor != "" && isInvalid(err) {
		// Either the demand is wrong, or the cursor is (an older backup was restored). A call without it shows which.
		refusedCursor := pos.cursor
		pos = b.cache.position(f)
		pos.cursor = ""
		if response, err = b.verify(f, pos); err == nil {
			b.cache.dropCursor(refusedCursor)
			b.detach(nil, true)
			b.onChange(true)
		}
	}
	if err == nil {
		var a answer
		if a, err = b.checkAnswer(f, response, pos); err == nil {
			b.finish(f, a, nil)
			return
		}
	}
	b.finish(f, answer{}, err)
}

func (b *batcher) verify(f *flight, pos position) (*tumblerv1.VerifyResponse, error) {
	ctx, cancel := context.WithTimeout(b.ctx, b.timeout)
	defer cancel()
	response, err := b.service.Verify(ctx, b.request(f, pos.cursor))
	if err != nil {
		return nil, b.failure(err)
	}
	return response, nil
}

func (b *batcher) sendBatch(batch []*flight) {
	pos := b.cache.position(batch...)
	request := &tumblerv1.BatchVerifyRequest{Requests: make([]*tumblerv1.VerifyRequest, len(batch))}
	for place, f := range batch {
		request.Requests[place] = b.request(f, pos.cursor)
	}
	ctx, cancel := context.WithTimeout(b.ctx, b.timeout)
	defer cancel()
	response, err := b.service.BatchVerify(ctx, request)
	split := err != nil && b.ctx.Err() == nil && shouldSplit(err)
	if err != nil {
		err = b.failure(err)
	} else if len(response.GetResponses()) != len(batch) {
		err = errBadAnswer
	}
	var again []*flight
	for place, f := range batch {
		var a answer
		failure := err
		if err == nil {
			a, failure = b.checkAnswer(f, response.Responses[place], pos)
		}
		// A batch leaves an item undecided if its answer has no room for it, or if the item has the wrong form.
		if split || errors.Is(failure, errUndecided) {
			again = append(again, f)
		} else {
			b.finish(f, a, failure)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range again {
		f.maxBatch, f.sent = (len(batch)+1)/2, false
	}
	b.queue = append(again, b.queue...) // at the front: they have waited longest
}

// checkAnswer checks an answer, and caches its record if it may be cached. If the verdict depends on the demand, it must
// be the one that the record gives.
func (b *batcher) checkAnswer(f *flight, response *tumblerv1.VerifyResponse, pos position) (answer, error) {
	a := answer{code: Code(response.GetCode())}
	if response.GetValid() != (a.code == CodeValid) {
		return answer{}, errBadAnswer
	}
	if response.GetAnyProject() && b.projects.lacksProject() {
		return answer{}, errProjectRequired
	}
	switch a.code {
	case Code(tumblerv1.VerifyCode_VERIFY_CODE_UNSPECIFIED):
		return answer{}, errUndecided
	case CodeMalformed, CodeNotFound:
		b.evictDenied(f)
		return a, nil
	}
	_, isKnown := tumblerv1.VerifyCode_name[int32(a.code)]
	switch {
	case response.GetKeyId() != f.keyID:
		return answer{}, errBadAnswer
	case !isKnown: // a later server's code denies, whatever else the answer says
	case !hasValidTimes(response), b.cache.contradicts(f, pos, response.GetRevision()):
		return answer{}, errBadAnswer
	}
	if !b.projects.accepts(response.GetProjectId()) {
		b.evictDenied(f)
		return answer{code: CodeNotFound}, nil
	}
	a.record = newRecord(response)
	switch a.code {
	case CodeValid, CodeEnvironmentMismatch, CodeIPNotAllowed, CodeInsufficientScope:
		checkTime := response.GetCheckTime().AsTime().UnixMicro()
		sent := f.demand
		sent.ProjectIDs = nil
		if Code(verdict.Decide(&a.record.Record, &sent, checkTime)) != a.code {
			return answer{}, errBadAnswer
		}
		a.entry = &entry{
			record:    a.record,
			digest:    f.digest,
			sentAt:    pos.at,
			checkTime: checkTime,
			size:      proto.Size(response) + entryBytes,
		}
		b.cache.store(a.entry, pos, response.GetRevision(), response.GetCacheTtl().AsDuration())
	default:
		b.evictDenied(f)
	}
	return a, nil
}

// hasValidTimes reports whether an answer about a proven key has a check time, and all its times exist.
func hasValidTimes(response *tumblerv1.VerifyResponse) bool {
	return response.GetCheckTime().IsValid() &&
		(response.ExpireTime == nil || response.ExpireTime.IsValid()) &&
		(response.GraceExpireTime == nil || response.GraceExpireTime.IsValid())
}

// evictDenied evicts a key that the server has denied. If it was cached, its guarded streams are verified again.
func (b *batcher) evictDenied(f *flight) {
	if b.cache.evictDenied(f.keyID, &f.digest) {
		b.onChange(false, f.keyID)
	}
}

// finish delivers the result to all waiting callers.
func (b *batcher) finish(f *flight, a answer, err error) {
	b.mu.Lock()
	b.leaveJoinable(f)
	b.mu.Unlock()
	f.finish(a, err)
}

// leaveJoinable keeps a flight from being joined. The lock must be held.
func (b *batcher) leaveJoinable(f *flight) {
	if b.joinable[f.keyID] == f {
		delete(b.joinable, f.keyID)
	}
}

func (b *batcher) failure(err error) error {
	if b.ctx.Err() != nil {
		return errClosed
	}
	if status.Code(err) == codes.DeadlineExceeded {
		b.reconnect()
	}
	return classify(err)
}

func (f *flight) finish(a answer, err error) {
	f.answer, f.err = a, err
	close(f.done)
}

func (b *batcher) request(f *flight, cursor string) *tumblerv1.VerifyRequest {
	request := &tumblerv1.VerifyRequest{
		Key:            f.key,
		ProjectId:      b.projects.only(),
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
// decision on the record. An answer that is older than maxStaleness decides nothing, for example because the process
// stood still: the key may have been revoked meanwhile.
func (f *flight) verdict(
	demand *verdict.Demand, now, maxStaleness time.Duration, joined bool,
) (*Verification, error) {
	if now-f.sentAt > maxStaleness {
		return nil, errOldAnswer
	}
	a := &f.answer
	if a.record != nil && demand.Excludes(a.record.ProjectID) {
		return a.record.verification(CodeNotFound, false), nil
	}
	if joined && a.entry != nil {
		code := Code(verdict.Decide(&a.record.Record, demand, a.entry.serverTime(now)))
		return a.entry.withUntil(a.record.verification(code, false)), nil
	}
	return a.entry.withUntil(a.record.verification(a.code, false)), nil
}

// wait returns when the flight has finished or the context has ended.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}
