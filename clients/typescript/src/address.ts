/** IP addresses and networks as bytes, so that `allowed_cidrs` can be checked without a server. */

import { isIPv4, isIPv6 } from "node:net";

/** Four bytes of an IPv4 address, or sixteen of an IPv6 one. */
export type Address = readonly number[];

export interface Network {
  readonly address: Address;
  readonly bits: number;
}

/**
 * Returns the address that the text names, or undefined if it names none.
 *
 * An IPv4-mapped IPv6 address is returned as IPv4. An address with a zone (`fe80::1%eth0`) means something else on
 * every machine, so it names none.
 */
export function parseAddress(text: string): Address | undefined {
  const bytes = toBytes(text);
  return bytes?.length === 16 && isMapped(bytes) ? bytes.slice(12) : bytes;
}

/** Returns the network that the text names, or undefined if it names none. No address is in an undefined network. */
export function parseNetwork(text: string): Network | undefined {
  const slash = text.indexOf("/");
  const address = toBytes(slash < 0 ? text : text.slice(0, slash));
  if (address === undefined) return undefined;
  const all = address.length * 8;
  if (slash < 0) return { address, bits: all };
  const bits = text.slice(slash + 1);
  return /^\d{1,3}$/.test(bits) && Number(bits) <= all ? { address, bits: Number(bits) } : undefined;
}

/** Returns whether the address is in the network. An address of the other family never is. */
export function contains(network: Network, address: Address): boolean {
  if (network.address.length !== address.length) return false;
  for (let index = 0, left = network.bits; left > 0; index++, left -= 8) {
    const difference = (network.address[index] ?? 0) ^ (address[index] ?? 0);
    if (difference >> Math.max(8 - left, 0) !== 0) return false;
  }
  return true;
}

function toBytes(text: string): Address | undefined {
  if (isIPv4(text)) return text.split(".").map(Number);
  if (text.includes("%") || !isIPv6(text)) return undefined;
  const [head = "", tail] = text.split("::");
  const front = groups(head);
  const back = tail === undefined ? [] : groups(tail);
  return [...front, ...new Array<number>(16 - front.length - back.length).fill(0), ...back];
}

function groups(text: string): number[] {
  if (text === "") return [];
  return text.split(":").flatMap((group) => {
    if (group.includes(".")) return group.split(".").map(Number);
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
}

function isMapped(bytes: Address): boolean {
  return bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff;
}
