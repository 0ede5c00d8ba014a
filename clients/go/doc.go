// Package tumbler verifies API keys against a Tumbler server. A cached key takes less than a microsecond.
//
// A Verifier caches the server's record of a key, never a verdict: each call decides expiry, environment, address and
// scopes again. It follows the server's Watch stream, so it denies a revoked key within milliseconds. The cache answers
// only while that stream is fresh (see WithMaxStaleness). If the Verifier cannot decide, it returns an error; it never
// accepts. The cache holds digests of presented keys, not the keys.
//
// Middleware, UnaryServerInterceptor and StreamServerInterceptor guard net/http handlers and gRPC services.
//
// The generated stubs of the whole API are in tumbler.dev/go/gen/tumbler/v1. Package tumbler.dev/go/keyformat checks
// the form of keys.
package tumbler
