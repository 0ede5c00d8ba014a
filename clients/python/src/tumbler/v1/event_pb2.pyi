from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tumbler.v1 import api_key_pb2 as _api_key_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeyEventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_EVENT_TYPE_UNSPECIFIED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_CREATED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_UPDATED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_ACTIVATED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_DEACTIVATED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_REVOKED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_ROTATED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_ROTATION_DUE: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_ROTATION_CLAIMED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_ROTATION_OVERDUE: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_EXPIRING: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_FIRST_USED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_WEBHOOK_SECRET_ROTATED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_RECORDED: _ClassVar[KeyEventType]
    KEY_EVENT_TYPE_REHASHED: _ClassVar[KeyEventType]

class DeliveryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_STATE_UNSPECIFIED: _ClassVar[DeliveryState]
    DELIVERY_STATE_PENDING: _ClassVar[DeliveryState]
    DELIVERY_STATE_DELIVERED: _ClassVar[DeliveryState]
    DELIVERY_STATE_FAILED: _ClassVar[DeliveryState]
    DELIVERY_STATE_OUTDATED: _ClassVar[DeliveryState]
    DELIVERY_STATE_ENDPOINT_OFF: _ClassVar[DeliveryState]
KEY_EVENT_TYPE_UNSPECIFIED: KeyEventType
KEY_EVENT_TYPE_CREATED: KeyEventType
KEY_EVENT_TYPE_UPDATED: KeyEventType
KEY_EVENT_TYPE_ACTIVATED: KeyEventType
KEY_EVENT_TYPE_DEACTIVATED: KeyEventType
KEY_EVENT_TYPE_REVOKED: KeyEventType
KEY_EVENT_TYPE_ROTATED: KeyEventType
KEY_EVENT_TYPE_ROTATION_DUE: KeyEventType
KEY_EVENT_TYPE_ROTATION_CLAIMED: KeyEventType
KEY_EVENT_TYPE_ROTATION_OVERDUE: KeyEventType
KEY_EVENT_TYPE_EXPIRING: KeyEventType
KEY_EVENT_TYPE_FIRST_USED: KeyEventType
KEY_EVENT_TYPE_WEBHOOK_SECRET_ROTATED: KeyEventType
KEY_EVENT_TYPE_RECORDED: KeyEventType
KEY_EVENT_TYPE_REHASHED: KeyEventType
DELIVERY_STATE_UNSPECIFIED: DeliveryState
DELIVERY_STATE_PENDING: DeliveryState
DELIVERY_STATE_DELIVERED: DeliveryState
DELIVERY_STATE_FAILED: DeliveryState
DELIVERY_STATE_OUTDATED: DeliveryState
DELIVERY_STATE_ENDPOINT_OFF: DeliveryState

class KeyEvent(_message.Message):
    __slots__ = ("revision", "type", "key_id", "project_id", "environment_id", "time", "actor", "detail", "hash", "client_address", "request_id", "record_digest")
    class DetailEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    revision: int
    type: KeyEventType
    key_id: str
    project_id: str
    environment_id: str
    time: _timestamp_pb2.Timestamp
    actor: _api_key_pb2.Actor
    detail: _containers.ScalarMap[str, str]
    hash: bytes
    client_address: str
    request_id: str
    record_digest: bytes
    def __init__(self, revision: _Optional[int] = ..., type: _Optional[_Union[KeyEventType, str]] = ..., key_id: _Optional[str] = ..., project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[_Union[_api_key_pb2.Actor, _Mapping]] = ..., detail: _Optional[_Mapping[str, str]] = ..., hash: _Optional[bytes] = ..., client_address: _Optional[str] = ..., request_id: _Optional[str] = ..., record_digest: _Optional[bytes] = ...) -> None: ...

class WebhookDelivery(_message.Message):
    __slots__ = ("id", "revision", "type", "key_id", "project_id", "url", "state", "attempts", "create_time", "last_attempt_time", "next_attempt_time", "last_status_code", "last_error")
    ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_ATTEMPT_TIME_FIELD_NUMBER: _ClassVar[int]
    NEXT_ATTEMPT_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    revision: int
    type: str
    key_id: str
    project_id: str
    url: str
    state: DeliveryState
    attempts: int
    create_time: _timestamp_pb2.Timestamp
    last_attempt_time: _timestamp_pb2.Timestamp
    next_attempt_time: _timestamp_pb2.Timestamp
    last_status_code: int
    last_error: str
    def __init__(self, id: _Optional[str] = ..., revision: _Optional[int] = ..., type: _Optional[str] = ..., key_id: _Optional[str] = ..., project_id: _Optional[str] = ..., url: _Optional[str] = ..., state: _Optional[_Union[DeliveryState, str]] = ..., attempts: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_attempt_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., next_attempt_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_status_code: _Optional[int] = ..., last_error: _Optional[str] = ...) -> None: ...
