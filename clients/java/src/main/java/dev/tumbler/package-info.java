/** Verifies API keys against a Tumbler server. Start with {@link dev.tumbler.Verifier}. */
package dev.tumbler;
