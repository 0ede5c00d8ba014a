package tumbler

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"

	"tumbler.dev/go/keyformat"
)

// digest is what is kept of a presented key.
type digest [sha256.Size]byte

// digester makes digests under a random key of its own: they are worth nothing outside this process. SHA-256 with the
// key before the text would let whoever knows a digest make that of a longer text; here nobody is ever shown one.
type digester struct{ secret [32]byte }

func newDigester() *digester {
	d := new(digester)
	rand.Read(d.secret[:]) // never fails: it ends the program where there is no randomness
	return d
}

// of returns the digest of a text that is no longer than a key can be.
func (d *digester) of(key string) digest {
	var text [len(d.secret) + keyformat.MaxLength]byte
	length := copy(text[:], d.secret[:])
	length += copy(text[length:], key)
	return sha256.Sum256(text[:length])
}

// same is the one place where digests are compared, in a time that does not depend on what they are.
func same(one, other *digest) bool {
	return subtle.ConstantTimeCompare(one[:], other[:]) == 1
}
