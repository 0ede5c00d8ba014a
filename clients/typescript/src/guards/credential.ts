import type { IncomingHttpHeaders } from "node:http";

/** A raw header. Its name may be in any case. */
export type Header = readonly [name: string, value: string];

/**
 * Why a request has no credential. `ambiguous`: a proxy in between may have checked a different one than we would.
 * `incomplete`: so may it here, because Node has dropped headers.
 */
export type Refused = "missing" | "ambiguous" | "incomplete";

/**
 * Returns the key of a request, from `authorization: Bearer <key>` or `x-api-key: <key>`. Each of these headers counts,
 * whatever it holds. The server has the same rule, and `tests/vectors/credentials.json` tests both. Undefined: some
 * headers are missing.
 */
export function credentialOf(
  headers: Iterable<Header> | undefined,
): { readonly credential: string } | { readonly credential?: undefined; readonly refused: Refused } {
  if (headers === undefined) return { refused: "incomplete" };
  const found: string[] = [];
  for (const [name, value] of headers) {
    switch (name.toLowerCase()) {
      case "authorization":
        found.push(/^bearer /i.test(value) ? value.slice("bearer ".length) : "");
        break;
      case "x-api-key":
        found.push(value);
    }
  }
  if (found.length > 1) return { refused: "ambiguous" };
  const credential = trimmed(found[0] ?? "");
  return credential === "" ? { refused: "missing" } : { credential };
}

/** Returns the text without spaces and tabs around it. A regular expression would take quadratic time in the middle. */
function trimmed(text: string): string {
  let start = 0;
  let end = text.length;
  while (start < end && isBlank(text[start])) start++;
  while (end > start && isBlank(text[end - 1])) end--;
  return text.slice(start, end);
}

function isBlank(character: string | undefined): boolean {
  return character === " " || character === "\t";
}

/** The headers of a request in Node. */
export interface NodeHeaders {
  readonly headers: IncomingHttpHeaders;
  /** Raw names and values in turn. In `headers`, Node has joined repeated headers, or dropped all but one. */
  readonly rawHeaders: readonly string[];
  readonly httpVersionMajor?: number;
  readonly socket?: object;
}

/**
 * Returns the raw headers that may hold credentials. A header that was only set here counts as well. Undefined: Node may
 * have dropped some.
 */
export function nodeHeaders(request: NodeHeaders): Header[] | undefined {
  const { headers, rawHeaders } = request;
  if (rawHeaders.length >= maxRawHeaders(request)) return undefined;
  const found: Header[] = [];
  for (const name of ["authorization", "x-api-key"]) {
    const before = found.length;
    for (let place = 0; place + 1 < rawHeaders.length; place += 2) {
      if (rawHeaders[place]?.toLowerCase() === name) found.push([name, rawHeaders[place + 1] ?? ""]);
    }
    const set = headers[name];
    if (found.length === before && typeof set === "string") found.push([name, set]);
  }
  return found;
}

/** Node's own limit, if nobody has set `maxHeadersCount`: 1,000 headers, although its documentation says 2,000. */
const DEFAULT_RAW_HEADERS = 2_000;

/**
 * Returns how many names and values `rawHeaders` has when Node stops adding to it. Node drops the headers after that,
 * and serves the request. HTTP/2 has no such limit: a request with too many headers is reset.
 *
 * Only a connection's parser knows for certain, because `maxHeadersCount` counts when a connection begins.
 */
function maxRawHeaders({ httpVersionMajor = 1, socket }: NodeHeaders): number {
  if (httpVersionMajor > 1) return Infinity;
  const { parser, server } = (socket ?? {}) as {
    parser?: { maxHeaderPairs?: unknown } | null;
    server?: { maxHeadersCount?: unknown } | null;
  };
  const ofParser = parser?.maxHeaderPairs;
  const ofServer = server?.maxHeadersCount;
  let most = DEFAULT_RAW_HEADERS;
  if (typeof ofParser === "number") most = ofParser;
  else if (typeof ofServer === "number") most = 2 * Math.floor(ofServer);
  return most > 0 ? most : Infinity;
}
