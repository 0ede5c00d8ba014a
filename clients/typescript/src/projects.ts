/**
 * For a verifier whose own key sees the keys of all projects: accept them all, whichever tenant's they are.
 *
 * It can be said by this name alone: no text that stands in a configuration means it.
 */
export const ANY_PROJECT: unique symbol = Symbol("tumbler.ANY_PROJECT");

/** A project, or several, one of which a key must belong to. */
export type ProjectId = string | readonly string[];

export const NAMELESS = "projectId: must be one or more project ids, none of them empty";

export const UNSAID =
  "the verifier's own key can verify the keys of all projects: set projectId, or ANY_PROJECT, " +
  "or use a key of one project";

/** Says whether there are projects, and each has a name. */
export function areNamed(projectId: unknown): projectId is ProjectId {
  const ids = Array.isArray(projectId) ? projectId : [projectId];
  return ids.length > 0 && ids.every((id) => typeof id === "string" && id !== "");
}
