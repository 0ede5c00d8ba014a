package tumbler

import (
	"container/list"
	"sync"
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// recentChanges is the number of latest changes that are kept, to compare them with answers to calls in flight.
const recentChanges = 1024

// entryBytes is what a cached key counts in addition to its answer: the digest and the entry itself.
const entryBytes = 1024

// ahead is how far in the future a heartbeat may be. A larger lead shows that the client's own clock stood still.
const ahead = 500 * time.Millisecond

// young is the age up to which a heartbeat never makes the client reopen the stream, however short maxStaleness is.
const young = time.Second

// entry is a cached key. It is immutable once it is in the cache.
type entry struct {
	record   *record
	digest   digest
	asked    time.Duration // when the call was about to be sent
	answered int64         // the server's clock at some instant after that, in microseconds
	until    time.Duration // the entry expires then
	size     int           // in bytes
}

// serverTime returns the time on the server's clock, or slightly later, but never earlier. So no key is accepted too
// long.
func (e *entry) serverTime(now time.Duration) int64 {
	return e.answered + (now - e.asked).Microseconds()
}

// lasting records in a verdict how long a guarded stream may rely on it.
func (e *entry) lasting(v *Verification) *Verification {
	if e != nil && v.Valid {
		v.until = e.until
	}
	return v
}

// mark is the state of the cache when a call is sent.
type mark struct {
	at         time.Duration
	cursor     string
	generation uint64
}

// memory is the LRU cache of keys. It also tracks whether the Watch stream is fresh.
type memory struct {
	clock        clock
	capacity     int
	room         int           // in bytes
	watched      bool          // there is a Watch stream
	maxStaleness time.Duration // with a stream: the maximum age of its last heartbeat
	heartbeat    time.Duration // with a stream: the heartbeat interval
	fixedTTL     time.Duration // without a stream: the lifetime of an entry

	mu         sync.Mutex
	entries    map[string]*list.Element // by key id, of *entry
	order      *list.List               // most recently used first
	bytes      int                      // the total size of the entries
	heard      bool                     // word is valid
	word       time.Duration            // the latest instant that a heartbeat confirms
	position   string                   // the Watch stream's cursor
	generation uint64                   // how often the whole cache was evicted
	changes    changes
}

func newMemory(s *settings) *memory {
	return &memory{
		clock:        s.clock,
		capacity:     s.cacheSize,
		room:         s.cacheBytes,
		watched:      s.watches(),
		maxStaleness: s.maxStaleness,
		heartbeat:    s.heartbeat,
		fixedTTL:     s.fixedTTL,
		entries:      make(map[string]*list.Element),
		order:        list.New(),
		changes:      newChanges(),
	}
}

// recall returns the entry of a key id, if the cache is fresh and the entry has not expired.
func (m *memory) recall(keyID string) (found *entry, now time.Duration) {
	now = m.clock.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	element, ok := m.entries[keyID]
	if !ok || !m.fresh(now) {
		return nil, now
	}
	found = element.Value.(*entry)
	if now >= found.until {
		m.drop(element)
		return nil, now
	}
	m.order.MoveToFront(element)
	return found, now
}

// mark returns the current state, for a call that is about to be sent.
func (m *memory) mark() mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return mark{at: m.clock.now(), cursor: m.position, generation: m.generation}
}

// remember caches the result of a call, unless the Watch stream has since delivered a change that the answer may not
// include. It also rejects the answer to a call without a cursor, which may be older than the start of the stream. So
// when a stream starts without a cursor, the cache is empty, and calls in flight do not fill it.
func (m *memory) remember(e *entry, began mark, revision int64, ttl time.Duration) {
	if !m.watched {
		ttl = min(ttl, m.fixedTTL)
	}
	e.until = began.at + ttl
	keyID := e.record.keyID
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.now()
	if m.capacity == 0 || e.size > m.room || now >= e.until || !m.fresh(now) ||
		m.watched && (began.cursor == "" || began.generation != m.generation || m.changes.after(keyID, revision)) {
		return
	}
	if element, ok := m.entries[keyID]; ok {
		m.drop(element)
	}
	m.entries[keyID] = m.order.PushFront(e)
	m.bytes += e.size
	for m.order.Len() > m.capacity || m.bytes > m.room {
		m.drop(m.order.Back())
	}
}

// forget evicts a key that the server has denied, whatever the stream has delivered so far, and reports whether the key
// was cached.
func (m *memory) forget(keyID string, d *digest) (known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	element, known := m.entries[keyID]
	if known = known && same(&element.Value.(*entry).digest, d); known {
		m.drop(element)
	}
	return known
}

// hear processes a message of a stream that was requested at opened, and reports whether to keep the stream.
//
// Only a heartbeat, a message without events, renews freshness: it shows that the stream has delivered everything.
// Events may be old, with more of them on their way.
func (m *memory) hear(said *tumblerv1.WatchResponse, opened time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if said.GetReset_() {
		m.forgetAll()
	}
	for _, event := range said.GetEvents() {
		m.changes.note(event.GetKeyId(), event.GetRevision())
		if element, ok := m.entries[event.GetKeyId()]; ok {
			m.drop(element)
		}
	}
	m.position = said.GetCursor()
	return len(said.GetEvents()) > 0 || said.GetReset_() || m.renew(said, opened)
}

// renew processes a heartbeat. It may have travelled or waited in a socket for long, so it counts from the instant that
// it confirms: opened plus stream_age. The server opened the stream after opened, so the sum is never too late.
func (m *memory) renew(heartbeat *tumblerv1.WatchResponse, opened time.Duration) bool {
	now := m.clock.now()
	trueAt := now
	if age := heartbeat.GetStreamAge(); age != nil {
		trueAt = opened + age.AsDuration()
	} else if m.heard && opened < m.word+m.maxStaleness && !m.fresh(now) {
		return false // an older server's heartbeat: it may have waited for as long as nothing arrived
	}
	if trueAt > now+ahead { // this machine's clock stood still
		m.heard = false
		return false
	}
	trueAt = min(trueAt, now)
	if !m.heard || trueAt > m.word {
		m.heard, m.word = true, trueAt
	}
	// If freshness would lapse before the next heartbeat, the stream is slow, or took long to open: reopen it.
	return now-trueAt <= max(young, m.maxStaleness-m.heartbeat)
}

// cursor returns the position where the next stream starts. Empty means now.
func (m *memory) cursor() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.position
}

// mistrust evicts everything. Nothing is cached until the next heartbeat.
func (m *memory) mistrust() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetAll()
	m.heard = false
}

// dropCursor drops a cursor that the server does not know, and evicts everything.
func (m *memory) dropCursor(cursor string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.position == cursor {
		m.forgetAll()
		m.heard, m.position = false, ""
	}
}

func (m *memory) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order.Len()
}

func (m *memory) fresh(now time.Duration) bool {
	if !m.watched {
		return m.fixedTTL > 0
	}
	return m.heard && now-m.word < m.maxStaleness
}

// freshUntil returns when freshness lapses if no further heartbeat arrives.
func (m *memory) freshUntil() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.watched && m.fixedTTL > 0:
		return always
	case !m.heard:
		return 0
	default:
		return m.word + m.maxStaleness
	}
}

// vouched reports whether the cache is fresh now, so that a new caller may share the answer to an earlier call.
func (m *memory) vouched() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fresh(m.clock.now())
}

func (m *memory) forgetAll() {
	m.generation++
	clear(m.entries)
	m.order.Init()
	m.bytes = 0
	// The revisions may belong to another history. Answers to calls in flight are rejected by their generation.
	m.changes = newChanges()
}

func (m *memory) drop(element *list.Element) {
	gone := m.order.Remove(element).(*entry)
	delete(m.entries, gone.record.keyID)
	m.bytes -= gone.size
}

// changes holds the key ids and revisions of the latest events.
type changes struct {
	revisions map[string]int64
	ring      [recentChanges]struct {
		keyID    string
		revision int64
	}
	next  int
	floor int64 // the highest revision that has dropped out of the ring
}

func newChanges() changes { return changes{revisions: make(map[string]int64)} }

func (c *changes) note(keyID string, revision int64) {
	oldest := &c.ring[c.next]
	if c.revisions[oldest.keyID] == oldest.revision {
		delete(c.revisions, oldest.keyID)
	}
	c.floor = max(c.floor, oldest.revision)
	oldest.keyID, oldest.revision = keyID, revision
	c.next = (c.next + 1) % len(c.ring)
	c.revisions[keyID] = max(revision, c.revisions[keyID])
}

// after reports whether the key has, or may have, changed after the revision.
func (c *changes) after(keyID string, revision int64) bool {
	return revision < c.floor || revision < c.revisions[keyID]
}
