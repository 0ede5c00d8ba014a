from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tumbler.v1 import api_key_pb2 as _api_key_pb2
from tumbler.v1 import event_pb2 as _event_pb2
from tumbler.v1 import secret_pb2 as _secret_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerifyCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERIFY_CODE_UNSPECIFIED: _ClassVar[VerifyCode]
    VERIFY_CODE_VALID: _ClassVar[VerifyCode]
    VERIFY_CODE_MALFORMED: _ClassVar[VerifyCode]
    VERIFY_CODE_NOT_FOUND: _ClassVar[VerifyCode]
    VERIFY_CODE_REVOKED: _ClassVar[VerifyCode]
    VERIFY_CODE_SUPERSEDED: _ClassVar[VerifyCode]
    VERIFY_CODE_INACTIVE: _ClassVar[VerifyCode]
    VERIFY_CODE_EXPIRED: _ClassVar[VerifyCode]
    VERIFY_CODE_ENVIRONMENT_MISMATCH: _ClassVar[VerifyCode]
    VERIFY_CODE_IP_NOT_ALLOWED: _ClassVar[VerifyCode]
    VERIFY_CODE_INSUFFICIENT_SCOPE: _ClassVar[VerifyCode]
VERIFY_CODE_UNSPECIFIED: VerifyCode
VERIFY_CODE_VALID: VerifyCode
VERIFY_CODE_MALFORMED: VerifyCode
VERIFY_CODE_NOT_FOUND: VerifyCode
VERIFY_CODE_REVOKED: VerifyCode
VERIFY_CODE_SUPERSEDED: VerifyCode
VERIFY_CODE_INACTIVE: VerifyCode
VERIFY_CODE_EXPIRED: VerifyCode
VERIFY_CODE_ENVIRONMENT_MISMATCH: VerifyCode
VERIFY_CODE_IP_NOT_ALLOWED: VerifyCode
VERIFY_CODE_INSUFFICIENT_SCOPE: VerifyCode

class CreateRequest(_message.Message):
    __slots__ = ("project_id", "environment_id", "name", "owner_id", "scopes", "metadata", "allowed_cidrs", "expire_time", "ttl", "prefix", "rotation", "request_id", "validate_only")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_CIDRS_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    environment_id: str
    name: str
    owner_id: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.ScalarMap[str, str]
    allowed_cidrs: _containers.RepeatedScalarFieldContainer[str]
    expire_time: _timestamp_pb2.Timestamp
    ttl: _duration_pb2.Duration
    prefix: str
    rotation: _api_key_pb2.Rotation
    request_id: str
    validate_only: bool
    def __init__(self, project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., name: _Optional[str] = ..., owner_id: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., allowed_cidrs: _Optional[_Iterable[str]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., prefix: _Optional[str] = ..., rotation: _Optional[_Union[_api_key_pb2.Rotation, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class CreateResponse(_message.Message):
    __slots__ = ("api_key", "key", "consistency_token", "secret_omitted", "webhook_secret")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_OMITTED_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    key: str
    consistency_token: str
    secret_omitted: bool
    webhook_secret: str
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., key: _Optional[str] = ..., consistency_token: _Optional[str] = ..., secret_omitted: bool = ..., webhook_secret: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("api_key",)
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("project_id", "environment_id", "owner_id", "states", "scope", "search", "order_by", "page_size", "page_token", "skip", "show_total_size")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    SHOW_TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    environment_id: str
    owner_id: str
    states: _containers.RepeatedScalarFieldContainer[_api_key_pb2.State]
    scope: str
    search: str
    order_by: str
    page_size: int
    page_token: str
    skip: int
    show_total_size: bool
    def __init__(self, project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., owner_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_api_key_pb2.State, str]]] = ..., scope: _Optional[str] = ..., search: _Optional[str] = ..., order_by: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., skip: _Optional[int] = ..., show_total_size: bool = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("api_keys", "next_page_token", "total_size")
    API_KEYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    api_keys: _containers.RepeatedCompositeFieldContainer[_api_key_pb2.ApiKey]
    next_page_token: str
    total_size: int
    def __init__(self, api_keys: _Optional[_Iterable[_Union[_api_key_pb2.ApiKey, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("api_key", "update_mask")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateResponse(_message.Message):
    __slots__ = ("api_key", "consistency_token", "webhook_secret")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    consistency_token: str
    webhook_secret: str
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., consistency_token: _Optional[str] = ..., webhook_secret: _Optional[str] = ...) -> None: ...

class KeyName(_message.Message):
    __slots__ = ("project_id", "environment_id", "name")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    environment_id: str
    name: str
    def __init__(self, project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class SetActiveRequest(_message.Message):
    __slots__ = ("key_id", "by_name", "active")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    BY_NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    by_name: KeyName
    active: bool
    def __init__(self, key_id: _Optional[str] = ..., by_name: _Optional[_Union[KeyName, _Mapping]] = ..., active: bool = ...) -> None: ...

class SetActiveResponse(_message.Message):
    __slots__ = ("api_key", "consistency_token")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    consistency_token: str
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., consistency_token: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("key_id", "reason", "comment")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    reason: _api_key_pb2.RevokeReason
    comment: str
    def __init__(self, key_id: _Optional[str] = ..., reason: _Optional[_Union[_api_key_pb2.RevokeReason, str]] = ..., comment: _Optional[str] = ...) -> None: ...

class RevokeResponse(_message.Message):
    __slots__ = ("api_key", "consistency_token")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    consistency_token: str
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., consistency_token: _Optional[str] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("key_id", "grace_period", "expire_time", "ttl", "request_id", "old_key_ends")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_PERIOD_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OLD_KEY_ENDS_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    grace_period: _duration_pb2.Duration
    expire_time: _timestamp_pb2.Timestamp
    ttl: _duration_pb2.Duration
    request_id: str
    old_key_ends: _api_key_pb2.OldKeyEnds
    def __init__(self, key_id: _Optional[str] = ..., grace_period: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ..., old_key_ends: _Optional[_Union[_api_key_pb2.OldKeyEnds, str]] = ...) -> None: ...

class RotateResponse(_message.Message):
    __slots__ = ("api_key", "old_api_key", "key", "consistency_token", "secret_omitted")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    OLD_API_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_OMITTED_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    old_api_key: _api_key_pb2.ApiKey
    key: str
    consistency_token: str
    secret_omitted: bool
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., old_api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., key: _Optional[str] = ..., consistency_token: _Optional[str] = ..., secret_omitted: bool = ...) -> None: ...

class Consistency(_message.Message):
    __slots__ = ("minimize_latency", "at_least_as_fresh", "fully_consistent")
    MINIMIZE_LATENCY_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_AS_FRESH_FIELD_NUMBER: _ClassVar[int]
    FULLY_CONSISTENT_FIELD_NUMBER: _ClassVar[int]
    minimize_latency: bool
    at_least_as_fresh: str
    fully_consistent: bool
    def __init__(self, minimize_latency: bool = ..., at_least_as_fresh: _Optional[str] = ..., fully_consistent: bool = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("key", "project_id", "environment_id", "required_scopes", "client_ip", "consistency")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_SCOPES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_IP_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    key: str
    project_id: str
    environment_id: str
    required_scopes: _containers.RepeatedScalarFieldContainer[str]
    client_ip: str
    consistency: Consistency
    def __init__(self, key: _Optional[str] = ..., project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., required_scopes: _Optional[_Iterable[str]] = ..., client_ip: _Optional[str] = ..., consistency: _Optional[_Union[Consistency, _Mapping]] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("valid", "code", "key_id", "project_id", "environment_id", "name", "owner_id", "scopes", "metadata", "allowed_cidrs", "expire_time", "grace_expire_time", "replaced_by_key_id", "cache_ttl", "check_time", "revision", "consistency_token", "any_project")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VALID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_CIDRS_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    GRACE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REPLACED_BY_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_FIELD_NUMBER: _ClassVar[int]
    CHECK_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ANY_PROJECT_FIELD_NUMBER: _ClassVar[int]
    valid: bool
    code: VerifyCode
    key_id: str
    project_id: str
    environment_id: str
    name: str
    owner_id: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.ScalarMap[str, str]
    allowed_cidrs: _containers.RepeatedScalarFieldContainer[str]
    expire_time: _timestamp_pb2.Timestamp
    grace_expire_time: _timestamp_pb2.Timestamp
    replaced_by_key_id: str
    cache_ttl: _duration_pb2.Duration
    check_time: _timestamp_pb2.Timestamp
    revision: int
    consistency_token: str
    any_project: bool
    def __init__(self, valid: bool = ..., code: _Optional[_Union[VerifyCode, str]] = ..., key_id: _Optional[str] = ..., project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., name: _Optional[str] = ..., owner_id: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., allowed_cidrs: _Optional[_Iterable[str]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., grace_expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., replaced_by_key_id: _Optional[str] = ..., cache_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., check_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., consistency_token: _Optional[str] = ..., any_project: bool = ...) -> None: ...

class BatchVerifyRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[VerifyRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[VerifyRequest, _Mapping]]] = ...) -> None: ...

class BatchVerifyResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[VerifyResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[VerifyResponse, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("project_id", "start_cursor", "heartbeat_interval")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    START_CURSOR_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    start_cursor: str
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, project_id: _Optional[str] = ..., start_cursor: _Optional[str] = ..., heartbeat_interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("events", "cursor", "reset", "stream_age")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    STREAM_AGE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.KeyEvent]
    cursor: str
    reset: bool
    stream_age: _duration_pb2.Duration
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.KeyEvent, _Mapping]]] = ..., cursor: _Optional[str] = ..., reset: bool = ..., stream_age: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("project_id", "key_id", "types", "since_time", "page_size", "page_token")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    key_id: str
    types: _containers.RepeatedScalarFieldContainer[_event_pb2.KeyEventType]
    since_time: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, project_id: _Optional[str] = ..., key_id: _Optional[str] = ..., types: _Optional[_Iterable[_Union[_event_pb2.KeyEventType, str]]] = ..., since_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.KeyEvent]
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.KeyEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ClaimRotationRequest(_message.Message):
    __slots__ = ("claim_token", "grace_period", "old_key_ends")
    CLAIM_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GRACE_PERIOD_FIELD_NUMBER: _ClassVar[int]
    OLD_KEY_ENDS_FIELD_NUMBER: _ClassVar[int]
    claim_token: str
    grace_period: _duration_pb2.Duration
    old_key_ends: _api_key_pb2.OldKeyEnds
    def __init__(self, claim_token: _Optional[str] = ..., grace_period: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., old_key_ends: _Optional[_Union[_api_key_pb2.OldKeyEnds, str]] = ...) -> None: ...

class ClaimRotationResponse(_message.Message):
    __slots__ = ("api_key", "old_api_key", "key", "consistency_token", "secret_omitted")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    OLD_API_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_OMITTED_FIELD_NUMBER: _ClassVar[int]
    api_key: _api_key_pb2.ApiKey
    old_api_key: _api_key_pb2.ApiKey
    key: str
    consistency_token: str
    secret_omitted: bool
    def __init__(self, api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., old_api_key: _Optional[_Union[_api_key_pb2.ApiKey, _Mapping]] = ..., key: _Optional[str] = ..., consistency_token: _Optional[str] = ..., secret_omitted: bool = ...) -> None: ...

class ListDeliveriesRequest(_message.Message):
    __slots__ = ("project_id", "key_id", "states", "page_size", "page_token")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    key_id: str
    states: _containers.RepeatedScalarFieldContainer[_event_pb2.DeliveryState]
    page_size: int
    page_token: str
    def __init__(self, project_id: _Optional[str] = ..., key_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_event_pb2.DeliveryState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeliveriesResponse(_message.Message):
    __slots__ = ("deliveries", "next_page_token")
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deliveries: _containers.RepeatedCompositeFieldContainer[_event_pb2.WebhookDelivery]
    next_page_token: str
    def __init__(self, deliveries: _Optional[_Iterable[_Union[_event_pb2.WebhookDelivery, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RedeliverRequest(_message.Message):
    __slots__ = ("delivery_id",)
    DELIVERY_ID_FIELD_NUMBER: _ClassVar[int]
    delivery_id: str
    def __init__(self, delivery_id: _Optional[str] = ...) -> None: ...

class RedeliverResponse(_message.Message):
    __slots__ = ("delivery",)
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    delivery: _event_pb2.WebhookDelivery
    def __init__(self, delivery: _Optional[_Union[_event_pb2.WebhookDelivery, _Mapping]] = ...) -> None: ...

class RotateWebhookSecretRequest(_message.Message):
    __slots__ = ("project_id", "webhook_url")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    webhook_url: str
    def __init__(self, project_id: _Optional[str] = ..., webhook_url: _Optional[str] = ...) -> None: ...

class RotateWebhookSecretResponse(_message.Message):
    __slots__ = ("webhook_secret", "previous_expire_time")
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    webhook_secret: str
    previous_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, webhook_secret: _Optional[str] = ..., previous_expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
