from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_ACTIVE: _ClassVar[State]
    STATE_INACTIVE: _ClassVar[State]
    STATE_EXPIRED: _ClassVar[State]
    STATE_REVOKED: _ClassVar[State]
    STATE_SUPERSEDED: _ClassVar[State]

class OldKeyEnds(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OLD_KEY_ENDS_UNSPECIFIED: _ClassVar[OldKeyEnds]
    OLD_KEY_ENDS_AT_GRACE_END: _ClassVar[OldKeyEnds]
    OLD_KEY_ENDS_ON_FIRST_USE: _ClassVar[OldKeyEnds]

class RevokeReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVOKE_REASON_UNSPECIFIED: _ClassVar[RevokeReason]
    REVOKE_REASON_COMPROMISED: _ClassVar[RevokeReason]
    REVOKE_REASON_SUPERSEDED: _ClassVar[RevokeReason]
    REVOKE_REASON_OWNER_LEFT: _ClassVar[RevokeReason]
    REVOKE_REASON_UNUSED: _ClassVar[RevokeReason]
    REVOKE_REASON_OTHER: _ClassVar[RevokeReason]
STATE_UNSPECIFIED: State
STATE_ACTIVE: State
STATE_INACTIVE: State
STATE_EXPIRED: State
STATE_REVOKED: State
STATE_SUPERSEDED: State
OLD_KEY_ENDS_UNSPECIFIED: OldKeyEnds
OLD_KEY_ENDS_AT_GRACE_END: OldKeyEnds
OLD_KEY_ENDS_ON_FIRST_USE: OldKeyEnds
REVOKE_REASON_UNSPECIFIED: RevokeReason
REVOKE_REASON_COMPROMISED: RevokeReason
REVOKE_REASON_SUPERSEDED: RevokeReason
REVOKE_REASON_OWNER_LEFT: RevokeReason
REVOKE_REASON_UNUSED: RevokeReason
REVOKE_REASON_OTHER: RevokeReason

class ApiKey(_message.Message):
    __slots__ = ("id", "project_id", "environment_id", "name", "key_prefix", "owner_id", "scopes", "metadata", "allowed_cidrs", "state", "create_time", "created_by", "update_time", "expire_time", "last_used_time", "revoke_time", "revoke_reason", "revoke_comment", "replaces_key_id", "replaced_by_key_id", "grace_expire_time", "rotation", "etag", "grace_ends_on_first_use")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_CIDRS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_TIME_FIELD_NUMBER: _ClassVar[int]
    REVOKE_TIME_FIELD_NUMBER: _ClassVar[int]
    REVOKE_REASON_FIELD_NUMBER: _ClassVar[int]
    REVOKE_COMMENT_FIELD_NUMBER: _ClassVar[int]
    REPLACES_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACED_BY_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    GRACE_ENDS_ON_FIRST_USE_FIELD_NUMBER: _ClassVar[int]
    id: str
    project_id: str
    environment_id: str
    name: str
    key_prefix: str
    owner_id: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.ScalarMap[str, str]
    allowed_cidrs: _containers.RepeatedScalarFieldContainer[str]
    state: State
    create_time: _timestamp_pb2.Timestamp
    created_by: Actor
    update_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    last_used_time: _timestamp_pb2.Timestamp
    revoke_time: _timestamp_pb2.Timestamp
    revoke_reason: RevokeReason
    revoke_comment: str
    replaces_key_id: str
    replaced_by_key_id: str
    grace_expire_time: _timestamp_pb2.Timestamp
    rotation: Rotation
    etag: str
    grace_ends_on_first_use: bool
    def __init__(self, id: _Optional[str] = ..., project_id: _Optional[str] = ..., environment_id: _Optional[str] = ..., name: _Optional[str] = ..., key_prefix: _Optional[str] = ..., owner_id: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., allowed_cidrs: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[State, str]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_by: _Optional[_Union[Actor, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_used_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., revoke_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., revoke_reason: _Optional[_Union[RevokeReason, str]] = ..., revoke_comment: _Optional[str] = ..., replaces_key_id: _Optional[str] = ..., replaced_by_key_id: _Optional[str] = ..., grace_expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., rotation: _Optional[_Union[Rotation, _Mapping]] = ..., etag: _Optional[str] = ..., grace_ends_on_first_use: bool = ...) -> None: ...

class Rotation(_message.Message):
    __slots__ = ("interval", "webhook_url", "next_time")
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    NEXT_TIME_FIELD_NUMBER: _ClassVar[int]
    interval: _duration_pb2.Duration
    webhook_url: str
    next_time: _timestamp_pb2.Timestamp
    def __init__(self, interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., webhook_url: _Optional[str] = ..., next_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Actor(_message.Message):
    __slots__ = ("key_id", "name")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    name: str
    def __init__(self, key_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...
