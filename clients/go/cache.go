package tumbler

import (
	"container/list"
	"sync"
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// maxChanges is the number of latest changes that are kept, to compare them with answers to calls in flight.
const maxChanges = 1024

// entryBytes is what a cached key counts in addition to its answer: the digest and the entry itself.
const entryBytes = 1024

// maxHeartbeatLead is how far in the future a heartbeat may be. A larger lead shows that the client's own clock stood
// still.
const maxHeartbeatLead = 500 * time.Millisecond

// toleratedAge is the age up to which a heartbeat never makes the client reopen the stream, however short maxStaleness
// is.
const toleratedAge = time.Second

// entry is a cached key. It is immutable once it is in the cache.
type entry struct {
	record    *record
	digest    digest
	sentAt    time.Duration // when the call was about to be sent
	checkTime int64         // the server's clock at some instant after that, in microseconds
	expiresAt time.Duration
	size      int // in bytes
}

// serverTime returns the time on the server's clock, or slightly later, but never earlier. So no key is accepted too
// long.
func (e *entry) serverTime(now time.Duration) int64 {
	return e.checkTime + (now - e.sentAt).Microseconds()
}

// withUntil records in a verdict how long a guarded stream may rely on it.
func (e *entry) withUntil(v *Verification) *Verification {
	if e != nil && v.Valid {
		v.until = e.expiresAt
	}
	return v
}

// position is what the Watch stream had delivered when a call was sent.
type position struct {
	at         time.Duration
	cursor     string
	generation uint64
}

// cache is the LRU cache of keys. It also tracks whether the Watch stream is fresh.
type cache struct {
	clock        clock
	maxEntries   int
	maxBytes     int           // in bytes
	watched      bool          // there is a Watch stream
	maxStaleness time.Duration // the maximum age of an answer, and of the stream's last heartbeat
	heartbeat    time.Duration // with a stream: the heartbeat interval
	fixedTTL     time.Duration // without a stream: the lifetime of an entry

	mu          sync.Mutex
	entries     map[string]*list.Element // by key id, of *entry
	order       *list.List               // most recently used first
	bytes       int                      // the total size of the entries
	isConfirmed bool                     // confirmedAt is valid
	confirmedAt time.Duration            // the latest instant that a heartbeat confirms
	cursor      string                   // where the next stream starts; empty: now
	generation  uint64                   // counts the resets
	changes     changes
}

func newCache(s *settings) *cache {
	return &cache{
		clock:        s.clock,
		maxEntries:   s.cacheSize,
		maxBytes:     s.cacheBytes,
		watched:      s.watches(),
		maxStaleness: s.maxStaleness,
		heartbeat:    s.heartbeat,
		fixedTTL:     s.fixedTTL,
		entries:      make(map[string]*list.Element),
		order:        list.New(),
		changes:      newChanges(),
	}
}

// lookup returns the entry of a key id, if the cache is fresh and the entry has not expired.
func (c *cache) lookup(keyID string) (found *entry, now time.Duration) {
	now = c.clock.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.entries[keyID]
	if !ok || !c.isFresh(now) {
		return nil, now
	}
	found = element.Value.(*entry)
	if now >= found.expiresAt {
		c.evict(element)
		return nil, now
	}
	c.order.MoveToFront(element)
	return found, now
}

// position returns what the stream has delivered so far, for a call with these flights that is about to be sent, and
// notes it in them.
func (c *cache) position(flights ...*flight) position {
	c.mu.Lock()
	defer c.mu.Unlock()
	pos := position{at: c.clock.now(), cursor: c.cursor, generation: c.generation}
	for _, f := range flights {
		f.sentAt, f.knownRevision = pos.at, c.changes.revisions[f.keyID]
	}
	return pos
}

// contradicts reports whether an answer of this revision lacks an event that the stream had delivered for the key
// before the call was sent. A reset forgets the events.
func (c *cache) contradicts(f *flight, pos position, revision int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return pos.generation == c.generation && max(revision, 0) < f.knownRevision
}

// store caches the result of a call, unless the Watch stream has since delivered a change that the answer may not
// include. It also rejects the answer to a call without a cursor, which may be older than the start of the stream. So
// when a stream starts without a cursor, the cache is empty, and calls in flight do not fill it.
func (c *cache) store(e *entry, pos position, revision int64, ttl time.Duration) {
	if !c.watched {
		ttl = min(ttl, c.fixedTTL)
	}
	e.expiresAt = later(pos.at, ttl)
	keyID := e.record.keyID
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.now()
	if c.maxEntries == 0 || e.size > c.maxBytes ||
		now >= e.expiresAt || now-pos.at > c.maxStaleness || !c.isFresh(now) ||
		c.watched && (pos.cursor == "" || pos.generation != c.generation || c.changes.after(keyID, revision)) {
		return
	}
	if element, ok := c.entries[keyID]; ok {
		c.evict(element)
	}
	c.entries[keyID] = c.order.PushFront(e)
	c.bytes += e.size
	for c.order.Len() > c.maxEntries || c.bytes > c.maxBytes {
		c.evict(c.order.Back())
	}
}

// evictDenied evicts a key that the server has denied, whatever the stream has delivered so far, and reports whether
// the key was cached.
func (c *cache) evictDenied(keyID string, d *digest) (known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, known := c.entries[keyID]
	if known = known && same(&element.Value.(*entry).digest, d); known {
		c.evict(element)
	}
	return known
}

// apply processes a message of a stream that was requested at requestedAt, and reports whether to keep the stream.
//
// Only a heartbeat, a message without events, renews freshness: it shows that the stream has delivered everything.
// Events may be old, with more of them on their way.
//
// A message without a cursor keeps the cursor that is known: a stream that was reopened without one would miss events.
func (c *cache) apply(response *tumblerv1.WatchResponse, requestedAt time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if response.GetReset_() {
		c.reset()
	}
	for _, event := range response.GetEvents() {
		c.changes.note(event.GetKeyId(), event.GetRevision())
		if element, ok := c.entries[event.GetKeyId()]; ok {
			c.evict(element)
		}
	}
	if cursor := response.GetCursor(); cursor != "" {
		c.cursor = cursor
	}
	return len(response.GetEvents()) > 0 || response.GetReset_() || c.applyHeartbeat(response, requestedAt)
}

// applyHeartbeat processes a heartbeat. It may have travelled or waited in a socket for long, so it counts from the
// instant that it confirms: requestedAt plus stream_age. The server opened the stream after requestedAt, so the sum is
// never too late. A stream_age that is negative, or longer than the stream can have been open, ends freshness: this
// machine's clock stood still, or the server is wrong.
func (c *cache) applyHeartbeat(heartbeat *tumblerv1.WatchResponse, requestedAt time.Duration) bool {
	now := c.clock.now()
	confirmed := now
	if heartbeat.GetStreamAge() != nil {
		age := heartbeat.GetStreamAge().AsDuration() // the longest Duration if it is longer
		if age < 0 || age > now-requestedAt+maxHeartbeatLead {
			c.isConfirmed = false
			return false
		}
		confirmed = min(requestedAt+age, now)
	} else if c.isConfirmed && requestedAt < later(c.confirmedAt, c.maxStaleness) && !c.isFresh(now) {
		return false // an older server's heartbeat: it may have waited for as long as nothing arrived
	}
	if !c.isConfirmed || confirmed > c.confirmedAt {
		c.isConfirmed, c.confirmedAt = true, confirmed
	}
	// If freshness would lapse before the next heartbeat, the stream is slow, or took long to open: reopen it.
	return now-confirmed <= max(toleratedAge, c.maxStaleness-c.heartbeat)
}

// invalidate evicts everything. Nothing is cached until the next heartbeat.
func (c *cache) invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
	c.isConfirmed = false
}

// dropCursor drops a cursor that the server does not know, and evicts everything.
func (c *cache) dropCursor(cursor string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cursor == cursor {
		c.reset()
		c.isConfirmed, c.cursor = false, ""
	}
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}

func (c *cache) isFresh(now time.Duration) bool {
	if !c.watched {
		return c.fixedTTL > 0
	}
	return c.isConfirmed && now-c.confirmedAt < c.maxStaleness
}

// freshUntil returns when freshness lapses if no further heartbeat arrives.
func (c *cache) freshUntil() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.watched && c.fixedTTL > 0:
		return always
	case !c.isConfirmed:
		return 0
	default:
		return later(c.confirmedAt, c.maxStaleness)
	}
}

// isFreshNow reports whether the cache is fresh now, so that a new caller may share the answer to an earlier call.
func (c *cache) isFreshNow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isFresh(c.clock.now())
}

func (c *cache) reset() {
	c.generation++
	clear(c.entries)
	c.order.Init()
	c.bytes = 0
	// The revisions may belong to another history. Answers to calls in flight are rejected by their generation.
	c.changes = newChanges()
}

func (c *cache) evict(element *list.Element) {
	gone := c.order.Remove(element).(*entry)
	delete(c.entries, gone.record.keyID)
	c.bytes -= gone.size
}

// changes holds the key ids and revisions of the latest events.
type changes struct {
	revisions map[string]int64
	ring      [maxChanges]struct {
		keyID    string
		revision int64
	}
	next          int
	revisionFloor int64 // the highest revision that has dropped out of the ring
}

func newChanges() changes { return changes{revisions: make(map[string]int64)} }

func (c *changes) note(keyID string, revision int64) {
	oldest := &c.ring[c.next]
	if c.revisions[oldest.keyID] == oldest.revision {
		delete(c.revisions, oldest.keyID)
	}
	c.revisionFloor = max(c.revisionFloor, oldest.revision)
	oldest.keyID, oldest.revision = keyID, revision
	c.next = (c.next + 1) % len(c.ring)
	c.revisions[keyID] = max(revision, c.revisions[keyID])
}

// after reports whether the key has, or may have, changed after the revision.
func (c *changes) after(keyID string, revision int64) bool {
	return revision < c.revisionFloor || revision < c.revisions[keyID]
}
