/** Receives the library's messages. `console` and the loggers of most libraries fit. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/** Writes warnings and errors to the console, and drops the rest. */
export const defaultLogger: Logger = {
  info() {},
  warn: (message) => console.warn(`tumbler: ${message}`),
  error: (message) => console.error(`tumbler: ${message}`),
};
