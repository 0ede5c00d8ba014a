/** The generated stubs of `tumbler.v1`, for everything except verifying: `createClient(ApiKeyService, transport)`. */
export * from "./gen/tumbler/v1/api_key_pb.js";
export * from "./gen/tumbler/v1/api_key_service_pb.js";
export * from "./gen/tumbler/v1/error_reason_pb.js";
export * from "./gen/tumbler/v1/event_pb.js";
export * from "./gen/tumbler/v1/secret_pb.js";
