/**
 * Accept the keys of all projects, of every tenant. For a verifier whose own key sees all projects.
 *
 * Only this name means it: no text in a configuration does.
 */
export const ANY_PROJECT: unique symbol = Symbol("tumbler.ANY_PROJECT");

/** A project, or several: a key must belong to one of them. */
export type ProjectId = string | readonly string[];

export const INVALID_PROJECT = "projectId: must be one or more project ids, none of them empty";

export const PROJECT_REQUIRED =
  "the verifier's own key can verify the keys of all projects: set projectId, or ANY_PROJECT, " +
  "or use a key of one project";

/** Returns whether there is at least one project, and none has an empty name. */
export function areValid(projectId: unknown): projectId is ProjectId {
  const ids = Array.isArray(projectId) ? projectId : [projectId];
  return ids.length > 0 && ids.every((id) => typeof id === "string" && id !== "");
}
