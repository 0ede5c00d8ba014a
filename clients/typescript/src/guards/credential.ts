import type { IncomingHttpHeaders } from "node:http";

/** A header as it came; its name in any case. */
export type Header = readonly [name: string, value: string];

/** Why a request has no credential. `ambiguous`: who stands in between may have judged another one than we would. */
export type NoCredential = "missing" | "ambiguous";

/**
 * Returns the one key that comes with a request, as `authorization: Bearer <key>` or `x-api-key: <key>`; each of these
 * headers counts, whatever it holds. The rule is that of the server; `tests/vectors/credentials.json` holds both to it.
 */
export function credentialOf(
  headers: Iterable<Header>,
): { readonly credential: string } | { readonly credential?: undefined; readonly refused: NoCredential } {
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
  const credential = (found[0] ?? "").replace(/^[ \t]+|[ \t]+$/g, "");
  return credential === "" ? { refused: "missing" } : { credential };
}

/** What Node has of a request's headers. */
export interface NodeHeaders {
  readonly headers: IncomingHttpHeaders;
  /** Names and values in turn, as they came. In `headers`, Node has joined several of a name, or dropped all but one. */
  readonly rawHeaders: readonly string[];
}

/** Returns the headers in which credentials are, as they came; one that did not come, but was set here, counts as well. */
export function nodeHeaders({ headers, rawHeaders }: NodeHeaders): Header[] {
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
