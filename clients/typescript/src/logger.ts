/** Receives the library's messages. `console` and the loggers of most libraries fit. If it fails, nothing changes. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/**
 * Returns a logger that passes messages on and never fails: what the given one throws, or rejects with later, is
 * dropped. There is nowhere left to report it.
 */
export function safeLogger(logger: Logger): Logger {
  const pass = (level: keyof Logger) => (message: string) => {
    try {
      const loose: Record<keyof Logger, (message: string) => unknown> = logger;
      const result = loose[level](message);
      if (result instanceof Promise) result.catch(() => {});
    } catch {
      // as promised
    }
  };
  return { info: pass("info"), warn: pass("warn"), error: pass("error") };
}

/** Writes warnings and errors to the console, and drops the rest. */
export const defaultLogger: Logger = {
  info() {},
  warn: (message) => console.warn(`tumbler: ${message}`),
  error: (message) => console.error(`tumbler: ${message}`),
};
