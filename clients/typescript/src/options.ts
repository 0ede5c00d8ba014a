import type { SecureContextOptions } from "node:tls";
import { defaultLogger, type Logger, safeLogger } from "./logger.js";
import { ANY_PROJECT, areValid, INVALID_PROJECT, type ProjectId } from "./projects.js";
import { type Endpoint, parseTarget } from "./target.js";

/** The TLS options. `{}`: trust the system's certificate authorities. The server's certificate is always verified. */
export interface Credentials
  extends Pick<SecureContextOptions, "ca" | "cert" | "key" | "passphrase" | "minVersion" | "ciphers"> {
  /** The name in the server's certificate, if it is not the host of the target. */
  readonly servername?: string;
}

/** The options of a verifier. Durations are in milliseconds. */
export interface VerifierOptions {
  /** The server: `host:port`, optionally after `dns:`, `unix:/path/of.sock`, or several: `ipv4:a:1,b:2`. */
  readonly target: string;

  /** The verifier's own key. It needs the scope `tumbler:keys:verify`. */
  readonly apiKey: string;

  /**
   * The project whose keys are accepted, or several. A key of another project is NOT_FOUND. Default: the project of
   * {@link apiKey}. If that key sees all projects (it belongs to the reserved project `tumbler`), you must name a
   * project or pass {@link ANY_PROJECT}.
   */
  readonly projectId?: ProjectId | typeof ANY_PROJECT | undefined;

  /**
   * TLS. Default: plaintext, in which your key and the presented key travel. That is refused unless the target is this
   * machine or {@link insecure} is set.
   */
  readonly credentials?: Credentials | undefined;

  /** Allow plaintext to another machine. */
  readonly insecure?: boolean | undefined;

  /** Maximum number of cached keys. The least recently used is evicted first. Default 10,000. 0: no cache. */
  readonly cacheSize?: number | undefined;

  /**
   * Maximum size of the cache in bytes. A key counts as the server's answer plus 1,024 bytes. 0: no cache. Default
   * 33,554,432 (32 MiB).
   */
  readonly cacheBytes?: number | undefined;

  /**
   * Maximum age of the instant that the stream's last heartbeat confirms. The cache does not answer beyond it, so this
   * is the longest that a revoked key is accepted while the stream is broken. Default 15,000.
   */
  readonly maxStaleness?: number | undefined;

  /** The longest silence of a healthy stream: 1,000–3,600,000, and shorter than `maxStaleness`. Default 5,000. */
  readonly heartbeat?: number | undefined;

  /** The longest wait for the server in one `verify`, which then fails with UnavailableError. Default 2,000. */
  readonly timeout?: number | undefined;

  /** Follow the server's stream of changes. Default true. Without it nothing is cached, unless `fixedTtl` is set. */
  readonly watch?: boolean | undefined;

  /** Cache for this long without the stream (`watch: false` only). A revoked key may pass that long. Default off. */
  readonly fixedTtl?: number | undefined;

  /** Receives reports of trouble. Default: warnings and errors go to the console. No key is ever logged. */
  readonly logger?: Logger | undefined;
}

/** The options, checked and with all defaults. */
export interface Settings {
  readonly endpoints: readonly Endpoint[];
  readonly apiKey: string;
  /** The projects whose keys are accepted. Empty: all projects that the verifier's own key sees. */
  readonly projects: readonly string[];
  /** Whether `projectId` was given. */
  readonly projectsSet: boolean;
  readonly credentials: Credentials | undefined;
  readonly cacheSize: number;
  readonly cacheBytes: number;
  readonly maxStaleness: number;
  readonly heartbeat: number;
  readonly timeout: number;
  readonly watch: boolean;
  readonly fixedTtl: number | undefined;
  /** It never throws. */
  readonly logger: Logger;
}

// Node fires a timer with a longer delay at once.
const LONGEST = 2 ** 31 - 1;

/**
 * Returns the settings that result from the options.
 *
 * @throws {TypeError} An option breaks its rule. The message names both, and never shows a key.
 */
export function toSettings(options: VerifierOptions): Settings {
  // Callers without types may leave out what is required.
  const { target, apiKey } = options as Partial<VerifierOptions>;
  const endpoints = parseTarget(String(target));
  if (endpoints === undefined) {
    throw new TypeError(
      "target: must be host:port, dns:host:port, ipv4: or ipv6: with a list of addresses, or unix:/path",
    );
  }
  if (!/^[\x21-\x7e]+$/.test(apiKey ?? "")) {
    throw new TypeError("apiKey: must be one key of visible ASCII characters");
  }
  const { projectId } = options;
  const all = projectId === undefined || projectId === ANY_PROJECT;
  if (!all && !areValid(projectId)) throw new TypeError(INVALID_PROJECT);
  if (options.credentials === undefined && !endpoints.every(({ loopback }) => loopback) && options.insecure !== true) {
    throw new TypeError(
      "credentials: the target is not this machine, so keys would cross the network in plaintext; " +
        "use credentials, or insecure: true if the network is trusted",
    );
  }

  const { cacheSize = 10_000, cacheBytes = 32 * 1024 * 1024, watch = true } = options;
  if (!Number.isInteger(cacheSize) || cacheSize < 0)
    throw new TypeError("cacheSize: must be a whole number, 0 or more");
  if (!Number.isInteger(cacheBytes) || cacheBytes < 0) {
    throw new TypeError("cacheBytes: must be a whole number, 0 or more");
  }
  const maxStaleness = duration("maxStaleness", options.maxStaleness ?? 15_000, 1, LONGEST);
  const heartbeat = duration("heartbeat", options.heartbeat ?? 5_000, 1_000, 3_600_000);
  if (heartbeat >= maxStaleness) throw new TypeError("maxStaleness: must be longer than heartbeat");
  const timeout = duration("timeout", options.timeout ?? 2_000, 1, LONGEST);
  if (options.fixedTtl !== undefined) {
    if (watch) throw new TypeError("fixedTtl: is only allowed with watch: false");
    duration("fixedTtl", options.fixedTtl, 1, LONGEST);
  }
  return {
    endpoints,
    apiKey: options.apiKey,
    projects: all ? [] : [projectId].flat(),
    projectsSet: projectId !== undefined,
    credentials: options.credentials,
    cacheSize,
    cacheBytes,
    maxStaleness,
    heartbeat,
    timeout,
    watch,
    fixedTtl: options.fixedTtl,
    logger: safeLogger(options.logger ?? defaultLogger),
  };
}

function duration(name: string, value: number, least: number, most: number): number {
  if (value >= least && value <= most) return value;
  throw new TypeError(`${name}: must be ${least} to ${most} milliseconds`);
}
