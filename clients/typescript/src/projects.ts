/**
 * For a verifier whose own key sees the keys of all projects: accept them all, whichever tenant's they are.
 *
 * It can be said by this name alone: no text that stands in a configuration means it.
 */
export const ANY_PROJECT: unique symbol = Symbol("tumbler.ANY_PROJECT");

/** A project, or several, one of which a key must belong to. */
export type ProjectId = string | readonly string[];

export const NAMELESS = "projectId must be a project's id, or several, none of them empty";

export const UNSAID =
  "this verifier's own key sees the keys of all projects: say projectId: …, or ANY_PROJECT, " +
  "or give it a key of one project";

/** Says whether there are projects, and each has a name. */
export function areNamed(projectId: unknown): projectId is ProjectId {
  const ids = Array.isArray(projectId) ? projectId : [projectId];
  return ids.length > 0 && ids.every((id) => typeof id === "string" && id !== "");
}
