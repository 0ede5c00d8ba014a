package tumbler

import (
	"context"
	"testing"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

func BenchmarkVerifyRemembered(b *testing.B) {
	for name, change := range map[string]func(*tumblerv1.VerifyResponse){
		"plain":    func(a *tumblerv1.VerifyResponse) { a.Metadata = nil },
		"metadata": func(*tumblerv1.VerifyResponse) {},
	} {
		b.Run(name, func(b *testing.B) {
			v := remembering(b, change)
			ctx, key := context.Background(), testKey(1, 'a')
			b.ReportAllocs()
			for b.Loop() {
				if found, err := v.Verify(ctx, key, RequireScopes("orders:read"), ClientIP("192.0.2.7")); err != nil || !found.Cached {
					b.Fatal(found, err)
				}
			}
		})
	}
}

// remembering returns a Verifier that has cached a key.
func remembering(b *testing.B, change func(*tumblerv1.VerifyResponse)) *Verifier {
	b.Helper()
	v, err := NewVerifier("localhost:1", WithAPIKey(ownKey), WithoutWatch(), WithFixedTTL(1<<62))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { v.Close() })
	key := testKey(1, 'a')
	answer := goodAnswer(&tumblerv1.VerifyRequest{Key: key})
	answer.CacheTtl.Seconds = 1 << 30
	change(answer)
	digest := v.digester.digest(key)
	if _, err := v.batcher.checkAnswer(&flight{keyID: idOf(key), digest: digest}, answer, v.cache.position()); err != nil {
		b.Fatal(err)
	}
	return v
}
