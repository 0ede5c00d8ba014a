/** Verifies API keys that a Tumbler server issued; {@link dev.tumbler.Verifier} is where to begin. */
package dev.tumbler;
