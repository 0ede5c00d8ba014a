/** The address of a server, and whether the connection leaves this machine. */

import { parseAddress } from "./address.js";

export interface Endpoint {
  /** `host:port` as in a URL. */
  readonly host: string;
  /** The path of the Unix socket, if the server listens on one. */
  readonly socketPath: string | undefined;
  /** Whether the connection cannot leave this machine, so that plaintext crosses no network. In doubt: false. */
  readonly loopback: boolean;
}

const HOST_AND_PORT = /^(\[[0-9A-Fa-f:.]+\]|[^:/?#@[\]\s,]+):(\d{1,5})$/;

/** Returns the endpoints that a gRPC target names, or undefined if its form is not supported. */
export function parseTarget(target: string): readonly Endpoint[] | undefined {
  if (target.startsWith("unix:")) {
    const socketPath = target.slice("unix:".length).replace(/^\/\/(?=\/)/, "");
    return socketPath === "" ? undefined : [{ host: "localhost", socketPath, loopback: true }];
  }
  const [, scheme, rest = ""] = /^(dns:(?:\/\/\/)?|ipv[46]:)?(.*)$/s.exec(target) ?? [];
  const endpoints = (scheme?.startsWith("ipv") ? rest.split(",") : [rest]).map(parseAddressAndPort);
  return endpoints.every((endpoint) => endpoint !== undefined) ? endpoints : undefined;
}

function parseAddressAndPort(text: string): Endpoint | undefined {
  const [, host, port] = HOST_AND_PORT.exec(text) ?? [];
  if (host === undefined || port === undefined || Number(port) > 65_535 || !URL.canParse(`http://${host}:${port}`))
    return undefined;
  return { host: `${host}:${port}`, socketPath: undefined, loopback: isLoopbackHost(host) };
}

function isLoopbackHost(host: string): boolean {
  if (host.toLowerCase() === "localhost") return true;
  const address = parseAddress(host.replace(/^\[|\]$/g, ""));
  if (address?.length === 4) return address[0] === 127;
  return address?.every((byte, index) => byte === (index === 15 ? 1 : 0)) ?? false;
}
