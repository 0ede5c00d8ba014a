package tumbler

import (
	"container/list"
	"sync"
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// recentChanges is how many changes are kept for answers that were under way meanwhile.
const recentChanges = 1024

// entryBytes is what a remembered key counts beside its record: the digest, and what holds the entry.
const entryBytes = 1024

// ahead is how far the server's clock may run ahead of ours in a stream's life; beyond it, ours has stood still.
const ahead = 500 * time.Millisecond

// young is how old a heartbeat may be for its stream to be listened to further, however short the staleness allowed is.
const young = time.Second

// entry is a remembered key. It is never changed.
type entry struct {
	record   *record
	digest   digest
	asked    time.Duration // when the call was about to be sent
	answered int64         // the server's clock, in microseconds, at some moment after that
	until    time.Duration
	size     int // in bytes
}

// serverTime returns what the server's clock shows now, or a little more, never less: whatever ends, ends in time.
func (e *entry) serverTime(now time.Duration) int64 {
	return e.answered + (now - e.asked).Microseconds()
}

// lasting notes in a verdict for how long it may be relied on.
func (e *entry) lasting(v *Verification) *Verification {
	if e != nil && v.Valid {
		v.until = e.until
	}
	return v
}

// mark is the state of the memory at the moment at which a call is sent.
type mark struct {
	at         time.Duration
	cursor     string
	generation uint64
}

// memory holds what is known of keys, and decides how long that may be relied on.
type memory struct {
	clock        clock
	capacity     int
	room         int           // in bytes
	watched      bool          // a stream says what has changed
	maxStaleness time.Duration // with a stream: how old its last word may be
	heartbeat    time.Duration // and how often it speaks at least
	fixedTTL     time.Duration // without one: how long an entry lives

	mu         sync.Mutex
	entries    map[string]*list.Element // by key id, of *entry
	order      *list.List               // the one used last in front
	bytes      int                      // what the entries count together
	heard      bool
	word       time.Duration // the latest moment by which the stream has told everything
	position   string        // the stream's cursor
	generation uint64        // how often everything was forgotten
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

// recall returns what is remembered under a key id, if it may be relied on now.
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

// mark returns the present state, for a call that is to be sent.
func (m *memory) mark() mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return mark{at: m.clock.now(), cursor: m.position, generation: m.generation}
}

// remember keeps what a call brought, unless something has been heard since that the answer may not hold. One to a call
// without the stream's cursor may even be older than where the stream began: so a stream that begins without a cursor
// finds nothing remembered, and nothing that is under way will be.
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

// forget drops what is remembered of a key that the server has denied, whatever the stream has told so far, and says
// whether there was anything.
func (m *memory) forget(keyID string, d *digest) (known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	element, known := m.entries[keyID]
	if known = known && same(&element.Value.(*entry).digest, d); known {
		m.drop(element)
	}
	return known
}

// hear takes in what a stream said that was opened then, and says whether to listen to it any longer.
//
// Only a word without events counts for freshness: it alone says that there was nothing else to tell. Events may be of
// long ago, with more of them still on their way.
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

// renew takes in a heartbeat. It may have been on its way for long, or have waited here: it counts from the moment that
// it is true of. The server opened the stream after we had asked for it, so what counts from then is never too late.
func (m *memory) renew(heartbeat *tumblerv1.WatchResponse, opened time.Duration) bool {
	now := m.clock.now()
	trueAt := now
	if age := heartbeat.GetStreamAge(); age != nil {
		trueAt = opened + age.AsDuration()
	} else if m.heard && opened < m.word+m.maxStaleness && !m.fresh(now) {
		return false // an older server's: it may have waited for as long as we heard nothing
	}
	if trueAt > now+ahead { // this machine stood still, and its clock with it
		m.heard = false
		return false
	}
	trueAt = min(trueAt, now)
	if !m.heard || trueAt > m.word {
		m.heard, m.word = true, trueAt
	}
	// Where trust would lapse before the next one, the stream is slow, or it took long to be opened.
	return now-trueAt <= max(young, m.maxStaleness-m.heartbeat)
}

// cursor returns where the next stream begins; empty: now.
func (m *memory) cursor() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.position
}

// mistrust forgets everything, and remembers nothing until the stream has been heard again.
func (m *memory) mistrust() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetAll()
	m.heard = false
}

// dropCursor forgets a cursor that the server does not know, and everything with it.
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

// freshUntil returns until when what is remembered may be relied on, unless the stream speaks before.
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

// vouched says whether what was known a moment ago may be told to who asks now.
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
	// The revisions may be of another history: answers that were under way are told by their generation.
	m.changes = newChanges()
}

func (m *memory) drop(element *list.Element) {
	gone := m.order.Remove(element).(*entry)
	delete(m.entries, gone.record.keyID)
	m.bytes -= gone.size
}

// changes are the latest events: which key, and the revision.
type changes struct {
	revisions map[string]int64
	ring      [recentChanges]struct {
		keyID    string
		revision int64
	}
	next  int
	floor int64 // the highest revision that has been dropped
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

// after says whether the key has, or may have, changed after the revision.
func (c *changes) after(keyID string, revision int64) bool {
	return revision < c.floor || revision < c.revisions[keyID]
}
