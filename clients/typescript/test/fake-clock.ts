import type { Clock } from "../src/clock.js";

/** Time that passes only when a test says so. */
export class FakeClock implements Clock {
  #now = 1_000;
  readonly #timers = new Set<{ due: number; run: () => void }>();

  now(): number {
    return this.#now;
  }

  after(milliseconds: number, run: () => void): () => void {
    const timer = { due: this.#now + milliseconds, run };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }

  advance(milliseconds: number): void {
    this.#now += milliseconds;
    for (const timer of [...this.#timers].sort((one, other) => one.due - other.due)) {
      if (timer.due <= this.#now && this.#timers.delete(timer)) timer.run();
    }
  }
}
