import type { SecureContextOptions } from "node:tls";
import { defaultLogger, type Logger } from "./logger.js";
import { ANY_PROJECT, areNamed, NAMELESS, type ProjectId } from "./projects.js";
import { type Endpoint, parseTarget } from "./target.js";

/** How TLS is spoken. `{}`: trust what the system trusts. The server's certificate is always checked. */
export interface Credentials
  extends Pick<SecureContextOptions, "ca" | "cert" | "key" | "passphrase" | "minVersion" | "ciphers"> {
  /** The name that the server's certificate must bear, where it is not the host of the target. */
  readonly servername?: string;
}

/** What a verifier is made of. All durations are milliseconds. */
export interface VerifierOptions {
  /** The server: `host:port` (also with `dns:` before it), `unix:/path/of.sock`, or several: `ipv4:a:1,b:2`. */
  readonly target: string;

  /** The verifier's own key, which needs the scope `tumbler:keys:verify`. */
  readonly apiKey: string;

  /**
   * Whose keys are accepted: the id of a project, or several. A key of another project is NOT_FOUND. Left out: those of
   * the project of {@link apiKey}. Where that key sees all projects (it is one of the reserved project `tumbler`), it must
   * be said: a project, or {@link ANY_PROJECT}.
   */
  readonly projectId?: ProjectId | typeof ANY_PROJECT | undefined;

  /**
   * TLS. Without it the connection is plaintext, and both keys, yours and the presented one, travel in it: that is
   * refused for a target that is not this machine, unless {@link insecure} is said.
   */
  readonly credentials?: Credentials | undefined;

  /** Allows plaintext to another machine. */
  readonly insecure?: boolean | undefined;

  /** How many keys are remembered, the least recently used being forgotten first. Default 10,000; 0: none. */
  readonly cacheSize?: number | undefined;

  /**
   * How many bytes they may take together, each counted as the server's answer and 1,024 bytes beside it. Default
   * 33,554,432 (32 MiB); 0: none is remembered.
   */
  readonly cacheBytes?: number | undefined;

  /**
   * How old the stream's last word may be for memory to answer: the longest that a revoked key is accepted while the
   * stream is broken. Default 15,000.
   */
  readonly maxStaleness?: number | undefined;

  /** The longest silence of a stream that works: 1,000–3,600,000, and shorter than `maxStaleness`. Default 5,000. */
  readonly heartbeat?: number | undefined;

  /** How long a call of verify may take before it fails with UnavailableError. Default 2,000. */
  readonly timeout?: number | undefined;

  /** Whether to listen to changes. Default true. Without it nothing is remembered, unless `fixedTtl` says so. */
  readonly watch?: boolean | undefined;

  /** Without the stream: how long a key is remembered, and so how late a revocation may be seen. Default: not at all. */
  readonly fixedTtl?: number | undefined;

  /** Where it is said what the owner should know. Default: warnings and errors to the console. Never receives a key. */
  readonly logger?: Logger | undefined;
}

/** The options as they count: checked, and with every default in place. */
export interface Settings {
  readonly endpoints: readonly Endpoint[];
  readonly apiKey: string;
  /** Whose keys are accepted; none: any project's that the verifier's own key sees. */
  readonly projects: readonly string[];
  /** Whether that was said. */
  readonly projectsSaid: boolean;
  readonly credentials: Credentials | undefined;
  readonly cacheSize: number;
  readonly cacheBytes: number;
  readonly maxStaleness: number;
  readonly heartbeat: number;
  readonly timeout: number;
  readonly watch: boolean;
  readonly fixedTtl: number | undefined;
  readonly logger: Logger;
}

// Node runs a timer of more milliseconds at once.
const LONGEST = 2 ** 31 - 1;

/**
 * Returns the settings that the options make.
 *
 * @throws {TypeError} An option breaks its rule; the message names the option and the rule, and never shows a key.
 */
export function settle(options: VerifierOptions): Settings {
  const endpoints = parseTarget(String(options.target));
  if (endpoints === undefined) {
    throw new TypeError(
      "target: must be host:port, dns:host:port, ipv4: or ipv6: with a list of addresses, or unix:/path",
    );
  }
  if (!/^[\x21-\x7e]+$/.test(options.apiKey ?? "")) {
    throw new TypeError("apiKey: must be one key of visible ASCII characters");
  }
  const { projectId } = options;
  const all = projectId === undefined || projectId === ANY_PROJECT;
  if (!all && !areNamed(projectId)) throw new TypeError(NAMELESS);
  if (options.credentials === undefined && !endpoints.every(({ loopback }) => loopback) && options.insecure !== true) {
    throw new TypeError(
      "credentials: the target is not this machine, so keys would cross the network in plaintext; " +
        "use credentials, or insecure: true if the network is trusted",
    );
  }

  const { cacheSize = 10_000, cacheBytes = 32 * 1024 * 1024, watch = true } = options;
  if (!Number.isInteger(cacheSize) || cacheSize < 0) throw new TypeError("cacheSize: must be a whole number, 0 or more");
  if (!Number.isInteger(cacheBytes) || cacheBytes < 0) {
    throw new TypeError("cacheBytes: must be a whole number, 0 or more");
  }
  const maxStaleness = duration("maxStaleness", options.maxStaleness ?? 15_000, 1, LONGEST);
  const heartbeat = duration("heartbeat", options.heartbeat ?? 5_000, 1_000, 3_600_000);
  if (heartbeat >= maxStaleness) throw new TypeError("maxStaleness: must be longer than heartbeat");
  const timeout = duration("timeout", options.timeout ?? 2_000, 1, LONGEST);
  if (options.fixedTtl !== undefined) {
    if (watch)
      throw new TypeError("fixedTtl: is only allowed with watch: false");
    duration("fixedTtl", options.fixedTtl, 1, LONGEST);
  }
  return {
    endpoints,
    apiKey: options.apiKey,
    projects: all ? [] : [projectId].flat(),
    projectsSaid: projectId !== undefined,
    credentials: options.credentials,
    cacheSize,
    cacheBytes,
    maxStaleness,
    heartbeat,
    timeout,
    watch,
    fixedTtl: options.fixedTtl,
    logger: options.logger ?? defaultLogger,
  };
}

function duration(name: string, value: number, least: number, most: number): number {
  if (value >= least && value <= most) return value;
  throw new TypeError(`${name}: must be ${least} to ${most} milliseconds`);
}
