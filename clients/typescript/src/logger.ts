/** Where the library says what its owner should know: `console`, and the loggers of most libraries, will do. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/** Warnings and errors go to the console, and what is a matter of course nowhere. */
export const defaultLogger: Logger = {
  info() {},
  warn: (message) => console.warn(`tumbler: ${message}`),
  error: (message) => console.error(`tumbler: ${message}`),
};
