/** Time, so that tests can let it pass. */
export interface Clock {
  /** Milliseconds of a clock that never goes back, from some beginning of its own. */
  now(): number;

  /** Runs something once, so many milliseconds from now, unless the function it returns is called before. */
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
