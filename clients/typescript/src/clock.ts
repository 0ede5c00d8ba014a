/** Time, replaceable in tests. */
export interface Clock {
  /** Milliseconds of a monotonic clock with an arbitrary start. */
  now(): number;

  /** Calls `run` once after so many milliseconds, unless the returned function is called before. */
  after(milliseconds: number, run: () => void, keepProcessAlive: boolean): () => void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  after(milliseconds, run, keepProcessAlive) {
    const timer = setTimeout(run, milliseconds);
    if (!keepProcessAlive) timer.unref();
    return () => clearTimeout(timer);
  },
};
