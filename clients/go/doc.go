// Package tumbler verifies API keys against a Tumbler server, in less than a microsecond for keys that it has seen.
//
// A Verifier remembers what the server told it of a key, never whether it may pass: expiry, environment, address and
// scopes are decided anew each time. It listens to a stream of changes, so that a revoked key is denied within
// milliseconds; and what it remembers counts only while that stream is heard (see WithMaxStaleness). Whatever cannot be
// found out is an error, never a yes. Of presented keys it keeps nothing but digests.
//
// Middleware, UnaryServerInterceptor and StreamServerInterceptor guard net/http handlers and gRPC services.
//
// The generated stubs of the whole service are in tumbler.dev/go/gen/tumbler/v1, the form of keys in
// tumbler.dev/go/keyformat.
package tumbler
