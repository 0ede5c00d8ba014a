package tumbler

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"

	"tumbler.dev/go/keyformat"
)

// digest is the only thing that the cache keeps of a presented key.
type digest [sha256.Size]byte

// digester computes digests with a random secret of its own, so they are worthless outside this process. SHA-256 of the
// secret and the text allows length extension if a digest is known; digests never leave the process.
type digester struct{ secret [32]byte }

func newDigester() *digester {
	d := new(digester)
	rand.Read(d.secret[:]) // never returns an error: it crashes the program if there is no randomness
	return d
}

// digest returns the digest of a text of at most keyformat.MaxLength.
func (d *digester) digest(key string) digest {
	var text [len(d.secret) + keyformat.MaxLength]byte
	length := copy(text[:], d.secret[:])
	length += copy(text[length:], key)
	return sha256.Sum256(text[:length])
}

// same compares two digests in constant time. No other code compares digests.
func same(one, other *digest) bool {
	return subtle.ConstantTimeCompare(one[:], other[:]) == 1
}
