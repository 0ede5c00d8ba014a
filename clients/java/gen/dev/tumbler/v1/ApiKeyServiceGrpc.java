package dev.tumbler.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * ApiKeyService issues API keys, and decides for each request that carries one whether it may pass.
 * Every call carries a key of its own: `authorization: Bearer &lt;key&gt;` or `x-api-key: &lt;key&gt;`,
 * and never more than one.
 * Without a key, with several, or with one that is not accepted, a call ends with UNAUTHENTICATED.
 * Without the scope that the RPC names, it ends with PERMISSION_DENIED.
 * A caller may only act in its own project;
 * a key of the reserved project `tumbler` may act in every project.
 * A request that names another project ends with PERMISSION_DENIED.
 * The id of another project's key ends with NOT_FOUND, exactly as an id that does not exist.
 * The server counts the entries of repeated fields and maps, and measures texts,
 * before it reads any of them.
 * A request that exceeds a field's limit ends with INVALID_ARGUMENT, which names the field.
 * A response has at most 3 MiB: a list ends its page early,
 * and a batch leaves the items undecided that do not fit.
 * Every error carries ErrorInfo (see ErrorReason). Any call can also end with INTERNAL,
 * with UNAVAILABLE if the database does not answer,
 * and with RESOURCE_EXHAUSTED and RetryInfo under overload.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class ApiKeyServiceGrpc {

  private ApiKeyServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "tumbler.v1.ApiKeyService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.CreateRequest,
      dev.tumbler.v1.CreateResponse> getCreateMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Create",
      requestType = dev.tumbler.v1.CreateRequest.class,
      responseType = dev.tumbler.v1.CreateResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.CreateRequest,
      dev.tumbler.v1.CreateResponse> getCreateMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.CreateRequest, dev.tumbler.v1.CreateResponse> getCreateMethod;
    if ((getCreateMethod = ApiKeyServiceGrpc.getCreateMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getCreateMethod = ApiKeyServiceGrpc.getCreateMethod) == null) {
          ApiKeyServiceGrpc.getCreateMethod = getCreateMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.CreateRequest, dev.tumbler.v1.CreateResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Create"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.CreateRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.CreateResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Create"))
              .build();
        }
      }
    }
    return getCreateMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.GetRequest,
      dev.tumbler.v1.GetResponse> getGetMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Get",
      requestType = dev.tumbler.v1.GetRequest.class,
      responseType = dev.tumbler.v1.GetResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.GetRequest,
      dev.tumbler.v1.GetResponse> getGetMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.GetRequest, dev.tumbler.v1.GetResponse> getGetMethod;
    if ((getGetMethod = ApiKeyServiceGrpc.getGetMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getGetMethod = ApiKeyServiceGrpc.getGetMethod) == null) {
          ApiKeyServiceGrpc.getGetMethod = getGetMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.GetRequest, dev.tumbler.v1.GetResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Get"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.GetRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.GetResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Get"))
              .build();
        }
      }
    }
    return getGetMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.ListRequest,
      dev.tumbler.v1.ListResponse> getListMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "List",
      requestType = dev.tumbler.v1.ListRequest.class,
      responseType = dev.tumbler.v1.ListResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.ListRequest,
      dev.tumbler.v1.ListResponse> getListMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.ListRequest, dev.tumbler.v1.ListResponse> getListMethod;
    if ((getListMethod = ApiKeyServiceGrpc.getListMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getListMethod = ApiKeyServiceGrpc.getListMethod) == null) {
          ApiKeyServiceGrpc.getListMethod = getListMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.ListRequest, dev.tumbler.v1.ListResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "List"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ListRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ListResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("List"))
              .build();
        }
      }
    }
    return getListMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.UpdateRequest,
      dev.tumbler.v1.UpdateResponse> getUpdateMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Update",
      requestType = dev.tumbler.v1.UpdateRequest.class,
      responseType = dev.tumbler.v1.UpdateResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.UpdateRequest,
      dev.tumbler.v1.UpdateResponse> getUpdateMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.UpdateRequest, dev.tumbler.v1.UpdateResponse> getUpdateMethod;
    if ((getUpdateMethod = ApiKeyServiceGrpc.getUpdateMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getUpdateMethod = ApiKeyServiceGrpc.getUpdateMethod) == null) {
          ApiKeyServiceGrpc.getUpdateMethod = getUpdateMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.UpdateRequest, dev.tumbler.v1.UpdateResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Update"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.UpdateRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.UpdateResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Update"))
              .build();
        }
      }
    }
    return getUpdateMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.SetActiveRequest,
      dev.tumbler.v1.SetActiveResponse> getSetActiveMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "SetActive",
      requestType = dev.tumbler.v1.SetActiveRequest.class,
      responseType = dev.tumbler.v1.SetActiveResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.SetActiveRequest,
      dev.tumbler.v1.SetActiveResponse> getSetActiveMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.SetActiveRequest, dev.tumbler.v1.SetActiveResponse> getSetActiveMethod;
    if ((getSetActiveMethod = ApiKeyServiceGrpc.getSetActiveMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getSetActiveMethod = ApiKeyServiceGrpc.getSetActiveMethod) == null) {
          ApiKeyServiceGrpc.getSetActiveMethod = getSetActiveMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.SetActiveRequest, dev.tumbler.v1.SetActiveResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "SetActive"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.SetActiveRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.SetActiveResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("SetActive"))
              .build();
        }
      }
    }
    return getSetActiveMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.RevokeRequest,
      dev.tumbler.v1.RevokeResponse> getRevokeMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Revoke",
      requestType = dev.tumbler.v1.RevokeRequest.class,
      responseType = dev.tumbler.v1.RevokeResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.RevokeRequest,
      dev.tumbler.v1.RevokeResponse> getRevokeMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.RevokeRequest, dev.tumbler.v1.RevokeResponse> getRevokeMethod;
    if ((getRevokeMethod = ApiKeyServiceGrpc.getRevokeMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getRevokeMethod = ApiKeyServiceGrpc.getRevokeMethod) == null) {
          ApiKeyServiceGrpc.getRevokeMethod = getRevokeMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.RevokeRequest, dev.tumbler.v1.RevokeResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Revoke"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RevokeRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RevokeResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Revoke"))
              .build();
        }
      }
    }
    return getRevokeMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.RotateRequest,
      dev.tumbler.v1.RotateResponse> getRotateMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Rotate",
      requestType = dev.tumbler.v1.RotateRequest.class,
      responseType = dev.tumbler.v1.RotateResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.RotateRequest,
      dev.tumbler.v1.RotateResponse> getRotateMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.RotateRequest, dev.tumbler.v1.RotateResponse> getRotateMethod;
    if ((getRotateMethod = ApiKeyServiceGrpc.getRotateMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getRotateMethod = ApiKeyServiceGrpc.getRotateMethod) == null) {
          ApiKeyServiceGrpc.getRotateMethod = getRotateMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.RotateRequest, dev.tumbler.v1.RotateResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Rotate"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RotateRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RotateResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Rotate"))
              .build();
        }
      }
    }
    return getRotateMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.VerifyRequest,
      dev.tumbler.v1.VerifyResponse> getVerifyMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Verify",
      requestType = dev.tumbler.v1.VerifyRequest.class,
      responseType = dev.tumbler.v1.VerifyResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.VerifyRequest,
      dev.tumbler.v1.VerifyResponse> getVerifyMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.VerifyRequest, dev.tumbler.v1.VerifyResponse> getVerifyMethod;
    if ((getVerifyMethod = ApiKeyServiceGrpc.getVerifyMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getVerifyMethod = ApiKeyServiceGrpc.getVerifyMethod) == null) {
          ApiKeyServiceGrpc.getVerifyMethod = getVerifyMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.VerifyRequest, dev.tumbler.v1.VerifyResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Verify"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.VerifyRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.VerifyResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Verify"))
              .build();
        }
      }
    }
    return getVerifyMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.BatchVerifyRequest,
      dev.tumbler.v1.BatchVerifyResponse> getBatchVerifyMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "BatchVerify",
      requestType = dev.tumbler.v1.BatchVerifyRequest.class,
      responseType = dev.tumbler.v1.BatchVerifyResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.BatchVerifyRequest,
      dev.tumbler.v1.BatchVerifyResponse> getBatchVerifyMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.BatchVerifyRequest, dev.tumbler.v1.BatchVerifyResponse> getBatchVerifyMethod;
    if ((getBatchVerifyMethod = ApiKeyServiceGrpc.getBatchVerifyMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getBatchVerifyMethod = ApiKeyServiceGrpc.getBatchVerifyMethod) == null) {
          ApiKeyServiceGrpc.getBatchVerifyMethod = getBatchVerifyMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.BatchVerifyRequest, dev.tumbler.v1.BatchVerifyResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "BatchVerify"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.BatchVerifyRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.BatchVerifyResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("BatchVerify"))
              .build();
        }
      }
    }
    return getBatchVerifyMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.WatchRequest,
      dev.tumbler.v1.WatchResponse> getWatchMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Watch",
      requestType = dev.tumbler.v1.WatchRequest.class,
      responseType = dev.tumbler.v1.WatchResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.WatchRequest,
      dev.tumbler.v1.WatchResponse> getWatchMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.WatchRequest, dev.tumbler.v1.WatchResponse> getWatchMethod;
    if ((getWatchMethod = ApiKeyServiceGrpc.getWatchMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getWatchMethod = ApiKeyServiceGrpc.getWatchMethod) == null) {
          ApiKeyServiceGrpc.getWatchMethod = getWatchMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.WatchRequest, dev.tumbler.v1.WatchResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Watch"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.WatchRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.WatchResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Watch"))
              .build();
        }
      }
    }
    return getWatchMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.ListEventsRequest,
      dev.tumbler.v1.ListEventsResponse> getListEventsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListEvents",
      requestType = dev.tumbler.v1.ListEventsRequest.class,
      responseType = dev.tumbler.v1.ListEventsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.ListEventsRequest,
      dev.tumbler.v1.ListEventsResponse> getListEventsMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.ListEventsRequest, dev.tumbler.v1.ListEventsResponse> getListEventsMethod;
    if ((getListEventsMethod = ApiKeyServiceGrpc.getListEventsMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getListEventsMethod = ApiKeyServiceGrpc.getListEventsMethod) == null) {
          ApiKeyServiceGrpc.getListEventsMethod = getListEventsMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.ListEventsRequest, dev.tumbler.v1.ListEventsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListEvents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ListEventsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ListEventsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("ListEvents"))
              .build();
        }
      }
    }
    return getListEventsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.ClaimRotationRequest,
      dev.tumbler.v1.ClaimRotationResponse> getClaimRotationMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ClaimRotation",
      requestType = dev.tumbler.v1.ClaimRotationRequest.class,
      responseType = dev.tumbler.v1.ClaimRotationResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.ClaimRotationRequest,
      dev.tumbler.v1.ClaimRotationResponse> getClaimRotationMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.ClaimRotationRequest, dev.tumbler.v1.ClaimRotationResponse> getClaimRotationMethod;
    if ((getClaimRotationMethod = ApiKeyServiceGrpc.getClaimRotationMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getClaimRotationMethod = ApiKeyServiceGrpc.getClaimRotationMethod) == null) {
          ApiKeyServiceGrpc.getClaimRotationMethod = getClaimRotationMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.ClaimRotationRequest, dev.tumbler.v1.ClaimRotationResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ClaimRotation"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ClaimRotationRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ClaimRotationResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("ClaimRotation"))
              .build();
        }
      }
    }
    return getClaimRotationMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.ListDeliveriesRequest,
      dev.tumbler.v1.ListDeliveriesResponse> getListDeliveriesMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListDeliveries",
      requestType = dev.tumbler.v1.ListDeliveriesRequest.class,
      responseType = dev.tumbler.v1.ListDeliveriesResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.ListDeliveriesRequest,
      dev.tumbler.v1.ListDeliveriesResponse> getListDeliveriesMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.ListDeliveriesRequest, dev.tumbler.v1.ListDeliveriesResponse> getListDeliveriesMethod;
    if ((getListDeliveriesMethod = ApiKeyServiceGrpc.getListDeliveriesMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getListDeliveriesMethod = ApiKeyServiceGrpc.getListDeliveriesMethod) == null) {
          ApiKeyServiceGrpc.getListDeliveriesMethod = getListDeliveriesMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.ListDeliveriesRequest, dev.tumbler.v1.ListDeliveriesResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListDeliveries"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ListDeliveriesRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.ListDeliveriesResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("ListDeliveries"))
              .build();
        }
      }
    }
    return getListDeliveriesMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.RedeliverRequest,
      dev.tumbler.v1.RedeliverResponse> getRedeliverMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Redeliver",
      requestType = dev.tumbler.v1.RedeliverRequest.class,
      responseType = dev.tumbler.v1.RedeliverResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.RedeliverRequest,
      dev.tumbler.v1.RedeliverResponse> getRedeliverMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.RedeliverRequest, dev.tumbler.v1.RedeliverResponse> getRedeliverMethod;
    if ((getRedeliverMethod = ApiKeyServiceGrpc.getRedeliverMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getRedeliverMethod = ApiKeyServiceGrpc.getRedeliverMethod) == null) {
          ApiKeyServiceGrpc.getRedeliverMethod = getRedeliverMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.RedeliverRequest, dev.tumbler.v1.RedeliverResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Redeliver"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RedeliverRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RedeliverResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("Redeliver"))
              .build();
        }
      }
    }
    return getRedeliverMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.tumbler.v1.RotateWebhookSecretRequest,
      dev.tumbler.v1.RotateWebhookSecretResponse> getRotateWebhookSecretMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RotateWebhookSecret",
      requestType = dev.tumbler.v1.RotateWebhookSecretRequest.class,
      responseType = dev.tumbler.v1.RotateWebhookSecretResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.tumbler.v1.RotateWebhookSecretRequest,
      dev.tumbler.v1.RotateWebhookSecretResponse> getRotateWebhookSecretMethod() {
    io.grpc.MethodDescriptor<dev.tumbler.v1.RotateWebhookSecretRequest, dev.tumbler.v1.RotateWebhookSecretResponse> getRotateWebhookSecretMethod;
    if ((getRotateWebhookSecretMethod = ApiKeyServiceGrpc.getRotateWebhookSecretMethod) == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        if ((getRotateWebhookSecretMethod = ApiKeyServiceGrpc.getRotateWebhookSecretMethod) == null) {
          ApiKeyServiceGrpc.getRotateWebhookSecretMethod = getRotateWebhookSecretMethod =
              io.grpc.MethodDescriptor.<dev.tumbler.v1.RotateWebhookSecretRequest, dev.tumbler.v1.RotateWebhookSecretResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RotateWebhookSecret"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RotateWebhookSecretRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.tumbler.v1.RotateWebhookSecretResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ApiKeyServiceMethodDescriptorSupplier("RotateWebhookSecret"))
              .build();
        }
      }
    }
    return getRotateWebhookSecretMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static ApiKeyServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ApiKeyServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ApiKeyServiceStub>() {
        @java.lang.Override
        public ApiKeyServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ApiKeyServiceStub(channel, callOptions);
        }
      };
    return ApiKeyServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static ApiKeyServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ApiKeyServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ApiKeyServiceBlockingStub>() {
        @java.lang.Override
        public ApiKeyServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ApiKeyServiceBlockingStub(channel, callOptions);
        }
      };
    return ApiKeyServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static ApiKeyServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ApiKeyServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ApiKeyServiceFutureStub>() {
        @java.lang.Override
        public ApiKeyServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ApiKeyServiceFutureStub(channel, callOptions);
        }
      };
    return ApiKeyServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * ApiKeyService issues API keys, and decides for each request that carries one whether it may pass.
   * Every call carries a key of its own: `authorization: Bearer &lt;key&gt;` or `x-api-key: &lt;key&gt;`,
   * and never more than one.
   * Without a key, with several, or with one that is not accepted, a call ends with UNAUTHENTICATED.
   * Without the scope that the RPC names, it ends with PERMISSION_DENIED.
   * A caller may only act in its own project;
   * a key of the reserved project `tumbler` may act in every project.
   * A request that names another project ends with PERMISSION_DENIED.
   * The id of another project's key ends with NOT_FOUND, exactly as an id that does not exist.
   * The server counts the entries of repeated fields and maps, and measures texts,
   * before it reads any of them.
   * A request that exceeds a field's limit ends with INVALID_ARGUMENT, which names the field.
   * A response has at most 3 MiB: a list ends its page early,
   * and a batch leaves the items undecided that do not fit.
   * Every error carries ErrorInfo (see ErrorReason). Any call can also end with INTERNAL,
   * with UNAVAILABLE if the database does not answer,
   * and with RESOURCE_EXHAUSTED and RetryInfo under overload.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Create makes a key and returns its secret, this once. Scope: `tumbler:keys:create`.
     * Granting a `tumbler:…` scope that the caller does not hold is PERMISSION_DENIED
     * (SCOPE_ESCALATION).
     * If the project has its maximum number of keys
     * (1,000,000 in any state, unless the operator sets another),
     * Create, Rotate and ClaimRotation end with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    default void create(dev.tumbler.v1.CreateRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.CreateResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCreateMethod(), responseObserver);
    }

    /**
     * <pre>
     * Get reads one key, in any state. Scope: `tumbler:keys:read`.
     * </pre>
     */
    default void get(dev.tumbler.v1.GetRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.GetResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetMethod(), responseObserver);
    }

    /**
     * <pre>
     * List reads keys in pages, including revoked ones. Scope: `tumbler:keys:read`.
     * A page continues after the last key of the page before, not at a number,
     * so keys made in the meantime cause no key to be skipped or repeated.
     * A key whose own sort value changes between two pages can move across the page boundary.
     * </pre>
     */
    default void list(dev.tumbler.v1.ListRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ListResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListMethod(), responseObserver);
    }

    /**
     * <pre>
     * Update changes the fields in the mask. Scope: `tumbler:keys:update`.
     * Verify uses the new values as soon as Update has returned.
     * A stale etag is ABORTED; a revoked key is FAILED_PRECONDITION.
     * An Update that changes nothing writes no event and leaves the etag as it is.
     * An Update widens a key if it sets a later expiry, an address or a scope that the key did not
     * have, another webhook_url, or a rotation that comes earlier.
     * To widen a key, the caller must hold the `tumbler:…` scopes that the key then carries;
     * otherwise PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key cannot widen itself, nor a key that it was rotated to or from (SELF_WIDENING).
     * </pre>
     */
    default void update(dev.tumbler.v1.UpdateRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.UpdateResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getUpdateMethod(), responseObserver);
    }

    /**
     * <pre>
     * SetActive activates or deactivates a key. Scope: `tumbler:keys:update`.
     * If the key already is in that state, the call succeeds and changes nothing.
     * A revoked key is FAILED_PRECONDITION.
     * To activate a key widens it: see Update.
     * </pre>
     */
    default void setActive(dev.tumbler.v1.SetActiveRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.SetActiveResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getSetActiveMethod(), responseObserver);
    }

    /**
     * <pre>
     * Revoke ends a key, permanently. Scope: `tumbler:keys:revoke`.
     * Once it has returned, no Verify that begins later in this installation's server
     * answers VALID for the key.
     * Repeating it succeeds; the first time, reason and comment are kept.
     * </pre>
     */
    default void revoke(dev.tumbler.v1.RevokeRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RevokeResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRevokeMethod(), responseObserver);
    }

    /**
     * <pre>
     * Rotate replaces a key by a successor. Scope: `tumbler:keys:rotate`.
     * The successor inherits name, owner, scopes, metadata, networks, environment, schedule,
     * and whether the key is active.
     * The old key keeps working for a grace period.
     * A superseded, revoked or expired key is FAILED_PRECONDITION:
     * of many concurrent calls exactly one succeeds.
     * If the response is lost, and the new secret with it, rotate the successor,
     * which KEY_SUPERSEDED names.
     * With OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * The caller receives the successor's secret.
     * So rotating a key that carries a `tumbler:…` scope which the caller does not hold
     * is PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key that rotates itself gives its successor at most its own lifetime, counted from now
     * (SELF_WIDENING).
     * </pre>
     */
    default void rotate(dev.tumbler.v1.RotateRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RotateResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRotateMethod(), responseObserver);
    }

    /**
     * <pre>
     * Verify decides whether a presented key may do what the request asks.
     * Scope: `tumbler:keys:verify`.
     * The verdict is in the response of an OK call.
     * An error status means that nothing was decided: deny the request at hand, or retry.
     * </pre>
     */
    default void verify(dev.tumbler.v1.VerifyRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.VerifyResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getVerifyMethod(), responseObserver);
    }

    /**
     * <pre>
     * BatchVerify verifies 1–1,000 keys in one call. Scope: `tumbler:keys:verify`.
     * Responses are in the order of the requests,
     * and all are decided at one instant and from one view of the log.
     * An item that Verify would answer with INVALID_ARGUMENT or PERMISSION_DENIED
     * does not fail the others: its own response is empty, and so denies.
     * Items that do not fit into a response of 3 MiB are empty, too.
     * If many keys need bcrypt, a call proves some of them and ends with RESOURCE_EXHAUSTED:
     * the next call continues from there.
     * </pre>
     */
    default void batchVerify(dev.tumbler.v1.BatchVerifyRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.BatchVerifyResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getBatchVerifyMethod(), responseObserver);
    }

    /**
     * <pre>
     * Watch streams changes as they are committed, so that a client can cache answers of Verify.
     * Scope: `tumbler:keys:verify`.
     * The server sends the first response at once.
     * Then it delivers every change as soon as it is committed, by any server of the installation,
     * once each and in commit order.
     * A heartbeat is a response without events and without reset.
     * Within every heartbeat_interval the server sends one:
     * all events up to at most 0.5 s before it have been delivered.
     * The server sends no heartbeat while it cannot confirm that,
     * for instance because its database does not answer.
     * If a client receives nothing for longer than heartbeat_interval,
     * it should stop using its cache, and call Verify.
     * A stream that starts at a cursor delivers what it missed first, without heartbeats;
     * the first heartbeat follows at once.
     * A stream ends with
     *  - UNAUTHENTICATED or PERMISSION_DENIED if the calling key would be refused now:
     *    it was revoked, has expired or lost its scope, for example;
     *  - RESOURCE_EXHAUSTED (READER_TOO_SLOW) if the client takes longer than five seconds
     *    to read a response, or falls too far behind; CANCELLED if it does not read that either;
     *  - RESOURCE_EXHAUSTED (OVERLOADED, with RetryInfo), at once, if the server has too many
     *    streams;
     *  - UNAVAILABLE (SERVER_STOPPING) if the server stops.
     * Reconnect after a pause with jitter, and start at the last cursor:
     * no event is missed and none is delivered twice.
     * </pre>
     */
    default void watch(dev.tumbler.v1.WatchRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.WatchResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getWatchMethod(), responseObserver);
    }

    /**
     * <pre>
     * ListEvents reads the audit trail, oldest first: every change, its time and its actor.
     * Scope: `tumbler:events:read`.
     * The server removes events older than its retention
     * (400 days, unless the operator sets another).
     * </pre>
     */
    default void listEvents(dev.tumbler.v1.ListEventsRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ListEventsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListEventsMethod(), responseObserver);
    }

    /**
     * <pre>
     * ClaimRotation fetches the successor of a key whose rotation is due.
     * The server makes the new secret now and returns it, this once;
     * the old key's grace period begins.
     * The claim token is the only credential: the call needs no API key.
     * A token works once. A token that this installation did not issue is UNAUTHENTICATED
     * (CLAIM_TOKEN_INVALID).
     * A used token is FAILED_PRECONDITION, and so is one whose key has since been rotated, revoked,
     * deactivated or given another schedule; nothing changes.
     * Of concurrent calls exactly one succeeds.
     * If the response is lost, Rotate the successor, which KEY_SUPERSEDED names;
     * with OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * </pre>
     */
    default void claimRotation(dev.tumbler.v1.ClaimRotationRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ClaimRotationResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getClaimRotationMethod(), responseObserver);
    }

    /**
     * <pre>
     * ListDeliveries reads the state of webhook deliveries, newest first.
     * Scope: `tumbler:events:read`.
     * The server keeps deliveries as long as events.
     * </pre>
     */
    default void listDeliveries(dev.tumbler.v1.ListDeliveriesRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ListDeliveriesResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListDeliveriesMethod(), responseObserver);
    }

    /**
     * <pre>
     * Redeliver sends a webhook again, at once and with the same id, whatever its state.
     * Scope: `tumbler:keys:update`.
     * Its attempts keep counting, and three days of retries start again.
     * If the endpoint was turned off, it is turned on.
     * A delivery that is out of date is FAILED_PRECONDITION (DELIVERY_OUTDATED).
     * </pre>
     */
    default void redeliver(dev.tumbler.v1.RedeliverRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RedeliverResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRedeliverMethod(), responseObserver);
    }

    /**
     * <pre>
     * RotateWebhookSecret makes a new secret for a webhook_url of a project.
     * Scope: `tumbler:keys:update`.
     * The caller must also hold the `tumbler:…` scopes of the keys with that URL;
     * otherwise PERMISSION_DENIED.
     * For 24 hours the previous secret signs as well,
     * so that no webhook is lost while the receiver changes over.
     * If the call is repeated within that time, all of these secrets sign for 24 hours more;
     * with three replaced secrets still signing, it ends with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    default void rotateWebhookSecret(dev.tumbler.v1.RotateWebhookSecretRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RotateWebhookSecretResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRotateWebhookSecretMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service ApiKeyService.
   * <pre>
   * ApiKeyService issues API keys, and decides for each request that carries one whether it may pass.
   * Every call carries a key of its own: `authorization: Bearer &lt;key&gt;` or `x-api-key: &lt;key&gt;`,
   * and never more than one.
   * Without a key, with several, or with one that is not accepted, a call ends with UNAUTHENTICATED.
   * Without the scope that the RPC names, it ends with PERMISSION_DENIED.
   * A caller may only act in its own project;
   * a key of the reserved project `tumbler` may act in every project.
   * A request that names another project ends with PERMISSION_DENIED.
   * The id of another project's key ends with NOT_FOUND, exactly as an id that does not exist.
   * The server counts the entries of repeated fields and maps, and measures texts,
   * before it reads any of them.
   * A request that exceeds a field's limit ends with INVALID_ARGUMENT, which names the field.
   * A response has at most 3 MiB: a list ends its page early,
   * and a batch leaves the items undecided that do not fit.
   * Every error carries ErrorInfo (see ErrorReason). Any call can also end with INTERNAL,
   * with UNAVAILABLE if the database does not answer,
   * and with RESOURCE_EXHAUSTED and RetryInfo under overload.
   * </pre>
   */
  public static abstract class ApiKeyServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return ApiKeyServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service ApiKeyService.
   * <pre>
   * ApiKeyService issues API keys, and decides for each request that carries one whether it may pass.
   * Every call carries a key of its own: `authorization: Bearer &lt;key&gt;` or `x-api-key: &lt;key&gt;`,
   * and never more than one.
   * Without a key, with several, or with one that is not accepted, a call ends with UNAUTHENTICATED.
   * Without the scope that the RPC names, it ends with PERMISSION_DENIED.
   * A caller may only act in its own project;
   * a key of the reserved project `tumbler` may act in every project.
   * A request that names another project ends with PERMISSION_DENIED.
   * The id of another project's key ends with NOT_FOUND, exactly as an id that does not exist.
   * The server counts the entries of repeated fields and maps, and measures texts,
   * before it reads any of them.
   * A request that exceeds a field's limit ends with INVALID_ARGUMENT, which names the field.
   * A response has at most 3 MiB: a list ends its page early,
   * and a batch leaves the items undecided that do not fit.
   * Every error carries ErrorInfo (see ErrorReason). Any call can also end with INTERNAL,
   * with UNAVAILABLE if the database does not answer,
   * and with RESOURCE_EXHAUSTED and RetryInfo under overload.
   * </pre>
   */
  public static final class ApiKeyServiceStub
      extends io.grpc.stub.AbstractAsyncStub<ApiKeyServiceStub> {
    private ApiKeyServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ApiKeyServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ApiKeyServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Create makes a key and returns its secret, this once. Scope: `tumbler:keys:create`.
     * Granting a `tumbler:…` scope that the caller does not hold is PERMISSION_DENIED
     * (SCOPE_ESCALATION).
     * If the project has its maximum number of keys
     * (1,000,000 in any state, unless the operator sets another),
     * Create, Rotate and ClaimRotation end with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    public void create(dev.tumbler.v1.CreateRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.CreateResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCreateMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Get reads one key, in any state. Scope: `tumbler:keys:read`.
     * </pre>
     */
    public void get(dev.tumbler.v1.GetRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.GetResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * List reads keys in pages, including revoked ones. Scope: `tumbler:keys:read`.
     * A page continues after the last key of the page before, not at a number,
     * so keys made in the meantime cause no key to be skipped or repeated.
     * A key whose own sort value changes between two pages can move across the page boundary.
     * </pre>
     */
    public void list(dev.tumbler.v1.ListRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ListResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Update changes the fields in the mask. Scope: `tumbler:keys:update`.
     * Verify uses the new values as soon as Update has returned.
     * A stale etag is ABORTED; a revoked key is FAILED_PRECONDITION.
     * An Update that changes nothing writes no event and leaves the etag as it is.
     * An Update widens a key if it sets a later expiry, an address or a scope that the key did not
     * have, another webhook_url, or a rotation that comes earlier.
     * To widen a key, the caller must hold the `tumbler:…` scopes that the key then carries;
     * otherwise PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key cannot widen itself, nor a key that it was rotated to or from (SELF_WIDENING).
     * </pre>
     */
    public void update(dev.tumbler.v1.UpdateRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.UpdateResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getUpdateMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * SetActive activates or deactivates a key. Scope: `tumbler:keys:update`.
     * If the key already is in that state, the call succeeds and changes nothing.
     * A revoked key is FAILED_PRECONDITION.
     * To activate a key widens it: see Update.
     * </pre>
     */
    public void setActive(dev.tumbler.v1.SetActiveRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.SetActiveResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getSetActiveMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Revoke ends a key, permanently. Scope: `tumbler:keys:revoke`.
     * Once it has returned, no Verify that begins later in this installation's server
     * answers VALID for the key.
     * Repeating it succeeds; the first time, reason and comment are kept.
     * </pre>
     */
    public void revoke(dev.tumbler.v1.RevokeRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RevokeResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRevokeMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Rotate replaces a key by a successor. Scope: `tumbler:keys:rotate`.
     * The successor inherits name, owner, scopes, metadata, networks, environment, schedule,
     * and whether the key is active.
     * The old key keeps working for a grace period.
     * A superseded, revoked or expired key is FAILED_PRECONDITION:
     * of many concurrent calls exactly one succeeds.
     * If the response is lost, and the new secret with it, rotate the successor,
     * which KEY_SUPERSEDED names.
     * With OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * The caller receives the successor's secret.
     * So rotating a key that carries a `tumbler:…` scope which the caller does not hold
     * is PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key that rotates itself gives its successor at most its own lifetime, counted from now
     * (SELF_WIDENING).
     * </pre>
     */
    public void rotate(dev.tumbler.v1.RotateRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RotateResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRotateMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Verify decides whether a presented key may do what the request asks.
     * Scope: `tumbler:keys:verify`.
     * The verdict is in the response of an OK call.
     * An error status means that nothing was decided: deny the request at hand, or retry.
     * </pre>
     */
    public void verify(dev.tumbler.v1.VerifyRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.VerifyResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getVerifyMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * BatchVerify verifies 1–1,000 keys in one call. Scope: `tumbler:keys:verify`.
     * Responses are in the order of the requests,
     * and all are decided at one instant and from one view of the log.
     * An item that Verify would answer with INVALID_ARGUMENT or PERMISSION_DENIED
     * does not fail the others: its own response is empty, and so denies.
     * Items that do not fit into a response of 3 MiB are empty, too.
     * If many keys need bcrypt, a call proves some of them and ends with RESOURCE_EXHAUSTED:
     * the next call continues from there.
     * </pre>
     */
    public void batchVerify(dev.tumbler.v1.BatchVerifyRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.BatchVerifyResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getBatchVerifyMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Watch streams changes as they are committed, so that a client can cache answers of Verify.
     * Scope: `tumbler:keys:verify`.
     * The server sends the first response at once.
     * Then it delivers every change as soon as it is committed, by any server of the installation,
     * once each and in commit order.
     * A heartbeat is a response without events and without reset.
     * Within every heartbeat_interval the server sends one:
     * all events up to at most 0.5 s before it have been delivered.
     * The server sends no heartbeat while it cannot confirm that,
     * for instance because its database does not answer.
     * If a client receives nothing for longer than heartbeat_interval,
     * it should stop using its cache, and call Verify.
     * A stream that starts at a cursor delivers what it missed first, without heartbeats;
     * the first heartbeat follows at once.
     * A stream ends with
     *  - UNAUTHENTICATED or PERMISSION_DENIED if the calling key would be refused now:
     *    it was revoked, has expired or lost its scope, for example;
     *  - RESOURCE_EXHAUSTED (READER_TOO_SLOW) if the client takes longer than five seconds
     *    to read a response, or falls too far behind; CANCELLED if it does not read that either;
     *  - RESOURCE_EXHAUSTED (OVERLOADED, with RetryInfo), at once, if the server has too many
     *    streams;
     *  - UNAVAILABLE (SERVER_STOPPING) if the server stops.
     * Reconnect after a pause with jitter, and start at the last cursor:
     * no event is missed and none is delivered twice.
     * </pre>
     */
    public void watch(dev.tumbler.v1.WatchRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.WatchResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getWatchMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ListEvents reads the audit trail, oldest first: every change, its time and its actor.
     * Scope: `tumbler:events:read`.
     * The server removes events older than its retention
     * (400 days, unless the operator sets another).
     * </pre>
     */
    public void listEvents(dev.tumbler.v1.ListEventsRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ListEventsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListEventsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ClaimRotation fetches the successor of a key whose rotation is due.
     * The server makes the new secret now and returns it, this once;
     * the old key's grace period begins.
     * The claim token is the only credential: the call needs no API key.
     * A token works once. A token that this installation did not issue is UNAUTHENTICATED
     * (CLAIM_TOKEN_INVALID).
     * A used token is FAILED_PRECONDITION, and so is one whose key has since been rotated, revoked,
     * deactivated or given another schedule; nothing changes.
     * Of concurrent calls exactly one succeeds.
     * If the response is lost, Rotate the successor, which KEY_SUPERSEDED names;
     * with OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * </pre>
     */
    public void claimRotation(dev.tumbler.v1.ClaimRotationRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ClaimRotationResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getClaimRotationMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ListDeliveries reads the state of webhook deliveries, newest first.
     * Scope: `tumbler:events:read`.
     * The server keeps deliveries as long as events.
     * </pre>
     */
    public void listDeliveries(dev.tumbler.v1.ListDeliveriesRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.ListDeliveriesResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListDeliveriesMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Redeliver sends a webhook again, at once and with the same id, whatever its state.
     * Scope: `tumbler:keys:update`.
     * Its attempts keep counting, and three days of retries start again.
     * If the endpoint was turned off, it is turned on.
     * A delivery that is out of date is FAILED_PRECONDITION (DELIVERY_OUTDATED).
     * </pre>
     */
    public void redeliver(dev.tumbler.v1.RedeliverRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RedeliverResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRedeliverMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * RotateWebhookSecret makes a new secret for a webhook_url of a project.
     * Scope: `tumbler:keys:update`.
     * The caller must also hold the `tumbler:…` scopes of the keys with that URL;
     * otherwise PERMISSION_DENIED.
     * For 24 hours the previous secret signs as well,
     * so that no webhook is lost while the receiver changes over.
     * If the call is repeated within that time, all of these secrets sign for 24 hours more;
     * with three replaced secrets still signing, it ends with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    public void rotateWebhookSecret(dev.tumbler.v1.RotateWebhookSecretRequest request,
        io.grpc.stub.StreamObserver<dev.tumbler.v1.RotateWebhookSecretResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRotateWebhookSecretMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service ApiKeyService.
   * <pre>
   * ApiKeyService issues API keys, and decides for each request that carries one whether it may pass.
   * Every call carries a key of its own: `authorization: Bearer &lt;key&gt;` or `x-api-key: &lt;key&gt;`,
   * and never more than one.
   * Without a key, with several, or with one that is not accepted, a call ends with UNAUTHENTICATED.
   * Without the scope that the RPC names, it ends with PERMISSION_DENIED.
   * A caller may only act in its own project;
   * a key of the reserved project `tumbler` may act in every project.
   * A request that names another project ends with PERMISSION_DENIED.
   * The id of another project's key ends with NOT_FOUND, exactly as an id that does not exist.
   * The server counts the entries of repeated fields and maps, and measures texts,
   * before it reads any of them.
   * A request that exceeds a field's limit ends with INVALID_ARGUMENT, which names the field.
   * A response has at most 3 MiB: a list ends its page early,
   * and a batch leaves the items undecided that do not fit.
   * Every error carries ErrorInfo (see ErrorReason). Any call can also end with INTERNAL,
   * with UNAVAILABLE if the database does not answer,
   * and with RESOURCE_EXHAUSTED and RetryInfo under overload.
   * </pre>
   */
  public static final class ApiKeyServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<ApiKeyServiceBlockingStub> {
    private ApiKeyServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ApiKeyServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ApiKeyServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Create makes a key and returns its secret, this once. Scope: `tumbler:keys:create`.
     * Granting a `tumbler:…` scope that the caller does not hold is PERMISSION_DENIED
     * (SCOPE_ESCALATION).
     * If the project has its maximum number of keys
     * (1,000,000 in any state, unless the operator sets another),
     * Create, Rotate and ClaimRotation end with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    public dev.tumbler.v1.CreateResponse create(dev.tumbler.v1.CreateRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCreateMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Get reads one key, in any state. Scope: `tumbler:keys:read`.
     * </pre>
     */
    public dev.tumbler.v1.GetResponse get(dev.tumbler.v1.GetRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * List reads keys in pages, including revoked ones. Scope: `tumbler:keys:read`.
     * A page continues after the last key of the page before, not at a number,
     * so keys made in the meantime cause no key to be skipped or repeated.
     * A key whose own sort value changes between two pages can move across the page boundary.
     * </pre>
     */
    public dev.tumbler.v1.ListResponse list(dev.tumbler.v1.ListRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Update changes the fields in the mask. Scope: `tumbler:keys:update`.
     * Verify uses the new values as soon as Update has returned.
     * A stale etag is ABORTED; a revoked key is FAILED_PRECONDITION.
     * An Update that changes nothing writes no event and leaves the etag as it is.
     * An Update widens a key if it sets a later expiry, an address or a scope that the key did not
     * have, another webhook_url, or a rotation that comes earlier.
     * To widen a key, the caller must hold the `tumbler:…` scopes that the key then carries;
     * otherwise PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key cannot widen itself, nor a key that it was rotated to or from (SELF_WIDENING).
     * </pre>
     */
    public dev.tumbler.v1.UpdateResponse update(dev.tumbler.v1.UpdateRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getUpdateMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * SetActive activates or deactivates a key. Scope: `tumbler:keys:update`.
     * If the key already is in that state, the call succeeds and changes nothing.
     * A revoked key is FAILED_PRECONDITION.
     * To activate a key widens it: see Update.
     * </pre>
     */
    public dev.tumbler.v1.SetActiveResponse setActive(dev.tumbler.v1.SetActiveRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getSetActiveMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Revoke ends a key, permanently. Scope: `tumbler:keys:revoke`.
     * Once it has returned, no Verify that begins later in this installation's server
     * answers VALID for the key.
     * Repeating it succeeds; the first time, reason and comment are kept.
     * </pre>
     */
    public dev.tumbler.v1.RevokeResponse revoke(dev.tumbler.v1.RevokeRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRevokeMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Rotate replaces a key by a successor. Scope: `tumbler:keys:rotate`.
     * The successor inherits name, owner, scopes, metadata, networks, environment, schedule,
     * and whether the key is active.
     * The old key keeps working for a grace period.
     * A superseded, revoked or expired key is FAILED_PRECONDITION:
     * of many concurrent calls exactly one succeeds.
     * If the response is lost, and the new secret with it, rotate the successor,
     * which KEY_SUPERSEDED names.
     * With OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * The caller receives the successor's secret.
     * So rotating a key that carries a `tumbler:…` scope which the caller does not hold
     * is PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key that rotates itself gives its successor at most its own lifetime, counted from now
     * (SELF_WIDENING).
     * </pre>
     */
    public dev.tumbler.v1.RotateResponse rotate(dev.tumbler.v1.RotateRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRotateMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Verify decides whether a presented key may do what the request asks.
     * Scope: `tumbler:keys:verify`.
     * The verdict is in the response of an OK call.
     * An error status means that nothing was decided: deny the request at hand, or retry.
     * </pre>
     */
    public dev.tumbler.v1.VerifyResponse verify(dev.tumbler.v1.VerifyRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getVerifyMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * BatchVerify verifies 1–1,000 keys in one call. Scope: `tumbler:keys:verify`.
     * Responses are in the order of the requests,
     * and all are decided at one instant and from one view of the log.
     * An item that Verify would answer with INVALID_ARGUMENT or PERMISSION_DENIED
     * does not fail the others: its own response is empty, and so denies.
     * Items that do not fit into a response of 3 MiB are empty, too.
     * If many keys need bcrypt, a call proves some of them and ends with RESOURCE_EXHAUSTED:
     * the next call continues from there.
     * </pre>
     */
    public dev.tumbler.v1.BatchVerifyResponse batchVerify(dev.tumbler.v1.BatchVerifyRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getBatchVerifyMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Watch streams changes as they are committed, so that a client can cache answers of Verify.
     * Scope: `tumbler:keys:verify`.
     * The server sends the first response at once.
     * Then it delivers every change as soon as it is committed, by any server of the installation,
     * once each and in commit order.
     * A heartbeat is a response without events and without reset.
     * Within every heartbeat_interval the server sends one:
     * all events up to at most 0.5 s before it have been delivered.
     * The server sends no heartbeat while it cannot confirm that,
     * for instance because its database does not answer.
     * If a client receives nothing for longer than heartbeat_interval,
     * it should stop using its cache, and call Verify.
     * A stream that starts at a cursor delivers what it missed first, without heartbeats;
     * the first heartbeat follows at once.
     * A stream ends with
     *  - UNAUTHENTICATED or PERMISSION_DENIED if the calling key would be refused now:
     *    it was revoked, has expired or lost its scope, for example;
     *  - RESOURCE_EXHAUSTED (READER_TOO_SLOW) if the client takes longer than five seconds
     *    to read a response, or falls too far behind; CANCELLED if it does not read that either;
     *  - RESOURCE_EXHAUSTED (OVERLOADED, with RetryInfo), at once, if the server has too many
     *    streams;
     *  - UNAVAILABLE (SERVER_STOPPING) if the server stops.
     * Reconnect after a pause with jitter, and start at the last cursor:
     * no event is missed and none is delivered twice.
     * </pre>
     */
    public java.util.Iterator<dev.tumbler.v1.WatchResponse> watch(
        dev.tumbler.v1.WatchRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getWatchMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListEvents reads the audit trail, oldest first: every change, its time and its actor.
     * Scope: `tumbler:events:read`.
     * The server removes events older than its retention
     * (400 days, unless the operator sets another).
     * </pre>
     */
    public dev.tumbler.v1.ListEventsResponse listEvents(dev.tumbler.v1.ListEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ClaimRotation fetches the successor of a key whose rotation is due.
     * The server makes the new secret now and returns it, this once;
     * the old key's grace period begins.
     * The claim token is the only credential: the call needs no API key.
     * A token works once. A token that this installation did not issue is UNAUTHENTICATED
     * (CLAIM_TOKEN_INVALID).
     * A used token is FAILED_PRECONDITION, and so is one whose key has since been rotated, revoked,
     * deactivated or given another schedule; nothing changes.
     * Of concurrent calls exactly one succeeds.
     * If the response is lost, Rotate the successor, which KEY_SUPERSEDED names;
     * with OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * </pre>
     */
    public dev.tumbler.v1.ClaimRotationResponse claimRotation(dev.tumbler.v1.ClaimRotationRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getClaimRotationMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListDeliveries reads the state of webhook deliveries, newest first.
     * Scope: `tumbler:events:read`.
     * The server keeps deliveries as long as events.
     * </pre>
     */
    public dev.tumbler.v1.ListDeliveriesResponse listDeliveries(dev.tumbler.v1.ListDeliveriesRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListDeliveriesMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Redeliver sends a webhook again, at once and with the same id, whatever its state.
     * Scope: `tumbler:keys:update`.
     * Its attempts keep counting, and three days of retries start again.
     * If the endpoint was turned off, it is turned on.
     * A delivery that is out of date is FAILED_PRECONDITION (DELIVERY_OUTDATED).
     * </pre>
     */
    public dev.tumbler.v1.RedeliverResponse redeliver(dev.tumbler.v1.RedeliverRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRedeliverMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * RotateWebhookSecret makes a new secret for a webhook_url of a project.
     * Scope: `tumbler:keys:update`.
     * The caller must also hold the `tumbler:…` scopes of the keys with that URL;
     * otherwise PERMISSION_DENIED.
     * For 24 hours the previous secret signs as well,
     * so that no webhook is lost while the receiver changes over.
     * If the call is repeated within that time, all of these secrets sign for 24 hours more;
     * with three replaced secrets still signing, it ends with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    public dev.tumbler.v1.RotateWebhookSecretResponse rotateWebhookSecret(dev.tumbler.v1.RotateWebhookSecretRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRotateWebhookSecretMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service ApiKeyService.
   * <pre>
   * ApiKeyService issues API keys, and decides for each request that carries one whether it may pass.
   * Every call carries a key of its own: `authorization: Bearer &lt;key&gt;` or `x-api-key: &lt;key&gt;`,
   * and never more than one.
   * Without a key, with several, or with one that is not accepted, a call ends with UNAUTHENTICATED.
   * Without the scope that the RPC names, it ends with PERMISSION_DENIED.
   * A caller may only act in its own project;
   * a key of the reserved project `tumbler` may act in every project.
   * A request that names another project ends with PERMISSION_DENIED.
   * The id of another project's key ends with NOT_FOUND, exactly as an id that does not exist.
   * The server counts the entries of repeated fields and maps, and measures texts,
   * before it reads any of them.
   * A request that exceeds a field's limit ends with INVALID_ARGUMENT, which names the field.
   * A response has at most 3 MiB: a list ends its page early,
   * and a batch leaves the items undecided that do not fit.
   * Every error carries ErrorInfo (see ErrorReason). Any call can also end with INTERNAL,
   * with UNAVAILABLE if the database does not answer,
   * and with RESOURCE_EXHAUSTED and RetryInfo under overload.
   * </pre>
   */
  public static final class ApiKeyServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<ApiKeyServiceFutureStub> {
    private ApiKeyServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ApiKeyServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ApiKeyServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Create makes a key and returns its secret, this once. Scope: `tumbler:keys:create`.
     * Granting a `tumbler:…` scope that the caller does not hold is PERMISSION_DENIED
     * (SCOPE_ESCALATION).
     * If the project has its maximum number of keys
     * (1,000,000 in any state, unless the operator sets another),
     * Create, Rotate and ClaimRotation end with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.CreateResponse> create(
        dev.tumbler.v1.CreateRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCreateMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Get reads one key, in any state. Scope: `tumbler:keys:read`.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.GetResponse> get(
        dev.tumbler.v1.GetRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * List reads keys in pages, including revoked ones. Scope: `tumbler:keys:read`.
     * A page continues after the last key of the page before, not at a number,
     * so keys made in the meantime cause no key to be skipped or repeated.
     * A key whose own sort value changes between two pages can move across the page boundary.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.ListResponse> list(
        dev.tumbler.v1.ListRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Update changes the fields in the mask. Scope: `tumbler:keys:update`.
     * Verify uses the new values as soon as Update has returned.
     * A stale etag is ABORTED; a revoked key is FAILED_PRECONDITION.
     * An Update that changes nothing writes no event and leaves the etag as it is.
     * An Update widens a key if it sets a later expiry, an address or a scope that the key did not
     * have, another webhook_url, or a rotation that comes earlier.
     * To widen a key, the caller must hold the `tumbler:…` scopes that the key then carries;
     * otherwise PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key cannot widen itself, nor a key that it was rotated to or from (SELF_WIDENING).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.UpdateResponse> update(
        dev.tumbler.v1.UpdateRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getUpdateMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * SetActive activates or deactivates a key. Scope: `tumbler:keys:update`.
     * If the key already is in that state, the call succeeds and changes nothing.
     * A revoked key is FAILED_PRECONDITION.
     * To activate a key widens it: see Update.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.SetActiveResponse> setActive(
        dev.tumbler.v1.SetActiveRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getSetActiveMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Revoke ends a key, permanently. Scope: `tumbler:keys:revoke`.
     * Once it has returned, no Verify that begins later in this installation's server
     * answers VALID for the key.
     * Repeating it succeeds; the first time, reason and comment are kept.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.RevokeResponse> revoke(
        dev.tumbler.v1.RevokeRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRevokeMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Rotate replaces a key by a successor. Scope: `tumbler:keys:rotate`.
     * The successor inherits name, owner, scopes, metadata, networks, environment, schedule,
     * and whether the key is active.
     * The old key keeps working for a grace period.
     * A superseded, revoked or expired key is FAILED_PRECONDITION:
     * of many concurrent calls exactly one succeeds.
     * If the response is lost, and the new secret with it, rotate the successor,
     * which KEY_SUPERSEDED names.
     * With OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * The caller receives the successor's secret.
     * So rotating a key that carries a `tumbler:…` scope which the caller does not hold
     * is PERMISSION_DENIED (SCOPE_ESCALATION).
     * A key that rotates itself gives its successor at most its own lifetime, counted from now
     * (SELF_WIDENING).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.RotateResponse> rotate(
        dev.tumbler.v1.RotateRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRotateMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Verify decides whether a presented key may do what the request asks.
     * Scope: `tumbler:keys:verify`.
     * The verdict is in the response of an OK call.
     * An error status means that nothing was decided: deny the request at hand, or retry.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.VerifyResponse> verify(
        dev.tumbler.v1.VerifyRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getVerifyMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * BatchVerify verifies 1–1,000 keys in one call. Scope: `tumbler:keys:verify`.
     * Responses are in the order of the requests,
     * and all are decided at one instant and from one view of the log.
     * An item that Verify would answer with INVALID_ARGUMENT or PERMISSION_DENIED
     * does not fail the others: its own response is empty, and so denies.
     * Items that do not fit into a response of 3 MiB are empty, too.
     * If many keys need bcrypt, a call proves some of them and ends with RESOURCE_EXHAUSTED:
     * the next call continues from there.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.BatchVerifyResponse> batchVerify(
        dev.tumbler.v1.BatchVerifyRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getBatchVerifyMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ListEvents reads the audit trail, oldest first: every change, its time and its actor.
     * Scope: `tumbler:events:read`.
     * The server removes events older than its retention
     * (400 days, unless the operator sets another).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.ListEventsResponse> listEvents(
        dev.tumbler.v1.ListEventsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListEventsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ClaimRotation fetches the successor of a key whose rotation is due.
     * The server makes the new secret now and returns it, this once;
     * the old key's grace period begins.
     * The claim token is the only credential: the call needs no API key.
     * A token works once. A token that this installation did not issue is UNAUTHENTICATED
     * (CLAIM_TOKEN_INVALID).
     * A used token is FAILED_PRECONDITION, and so is one whose key has since been rotated, revoked,
     * deactivated or given another schedule; nothing changes.
     * Of concurrent calls exactly one succeeds.
     * If the response is lost, Rotate the successor, which KEY_SUPERSEDED names;
     * with OLD_KEY_ENDS_ON_FIRST_USE the old key works in the meantime.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.ClaimRotationResponse> claimRotation(
        dev.tumbler.v1.ClaimRotationRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getClaimRotationMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ListDeliveries reads the state of webhook deliveries, newest first.
     * Scope: `tumbler:events:read`.
     * The server keeps deliveries as long as events.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.ListDeliveriesResponse> listDeliveries(
        dev.tumbler.v1.ListDeliveriesRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListDeliveriesMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Redeliver sends a webhook again, at once and with the same id, whatever its state.
     * Scope: `tumbler:keys:update`.
     * Its attempts keep counting, and three days of retries start again.
     * If the endpoint was turned off, it is turned on.
     * A delivery that is out of date is FAILED_PRECONDITION (DELIVERY_OUTDATED).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.RedeliverResponse> redeliver(
        dev.tumbler.v1.RedeliverRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRedeliverMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * RotateWebhookSecret makes a new secret for a webhook_url of a project.
     * Scope: `tumbler:keys:update`.
     * The caller must also hold the `tumbler:…` scopes of the keys with that URL;
     * otherwise PERMISSION_DENIED.
     * For 24 hours the previous secret signs as well,
     * so that no webhook is lost while the receiver changes over.
     * If the call is repeated within that time, all of these secrets sign for 24 hours more;
     * with three replaced secrets still signing, it ends with RESOURCE_EXHAUSTED (LIMIT_REACHED).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.tumbler.v1.RotateWebhookSecretResponse> rotateWebhookSecret(
        dev.tumbler.v1.RotateWebhookSecretRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRotateWebhookSecretMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_CREATE = 0;
  private static final int METHODID_GET = 1;
  private static final int METHODID_LIST = 2;
  private static final int METHODID_UPDATE = 3;
  private static final int METHODID_SET_ACTIVE = 4;
  private static final int METHODID_REVOKE = 5;
  private static final int METHODID_ROTATE = 6;
  private static final int METHODID_VERIFY = 7;
  private static final int METHODID_BATCH_VERIFY = 8;
  private static final int METHODID_WATCH = 9;
  private static final int METHODID_LIST_EVENTS = 10;
  private static final int METHODID_CLAIM_ROTATION = 11;
  private static final int METHODID_LIST_DELIVERIES = 12;
  private static final int METHODID_REDELIVER = 13;
  private static final int METHODID_ROTATE_WEBHOOK_SECRET = 14;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_CREATE:
          serviceImpl.create((dev.tumbler.v1.CreateRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.CreateResponse>) responseObserver);
          break;
        case METHODID_GET:
          serviceImpl.get((dev.tumbler.v1.GetRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.GetResponse>) responseObserver);
          break;
        case METHODID_LIST:
          serviceImpl.list((dev.tumbler.v1.ListRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.ListResponse>) responseObserver);
          break;
        case METHODID_UPDATE:
          serviceImpl.update((dev.tumbler.v1.UpdateRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.UpdateResponse>) responseObserver);
          break;
        case METHODID_SET_ACTIVE:
          serviceImpl.setActive((dev.tumbler.v1.SetActiveRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.SetActiveResponse>) responseObserver);
          break;
        case METHODID_REVOKE:
          serviceImpl.revoke((dev.tumbler.v1.RevokeRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.RevokeResponse>) responseObserver);
          break;
        case METHODID_ROTATE:
          serviceImpl.rotate((dev.tumbler.v1.RotateRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.RotateResponse>) responseObserver);
          break;
        case METHODID_VERIFY:
          serviceImpl.verify((dev.tumbler.v1.VerifyRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.VerifyResponse>) responseObserver);
          break;
        case METHODID_BATCH_VERIFY:
          serviceImpl.batchVerify((dev.tumbler.v1.BatchVerifyRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.BatchVerifyResponse>) responseObserver);
          break;
        case METHODID_WATCH:
          serviceImpl.watch((dev.tumbler.v1.WatchRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.WatchResponse>) responseObserver);
          break;
        case METHODID_LIST_EVENTS:
          serviceImpl.listEvents((dev.tumbler.v1.ListEventsRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.ListEventsResponse>) responseObserver);
          break;
        case METHODID_CLAIM_ROTATION:
          serviceImpl.claimRotation((dev.tumbler.v1.ClaimRotationRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.ClaimRotationResponse>) responseObserver);
          break;
        case METHODID_LIST_DELIVERIES:
          serviceImpl.listDeliveries((dev.tumbler.v1.ListDeliveriesRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.ListDeliveriesResponse>) responseObserver);
          break;
        case METHODID_REDELIVER:
          serviceImpl.redeliver((dev.tumbler.v1.RedeliverRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.RedeliverResponse>) responseObserver);
          break;
        case METHODID_ROTATE_WEBHOOK_SECRET:
          serviceImpl.rotateWebhookSecret((dev.tumbler.v1.RotateWebhookSecretRequest) request,
              (io.grpc.stub.StreamObserver<dev.tumbler.v1.RotateWebhookSecretResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getCreateMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.CreateRequest,
              dev.tumbler.v1.CreateResponse>(
                service, METHODID_CREATE)))
        .addMethod(
          getGetMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.GetRequest,
              dev.tumbler.v1.GetResponse>(
                service, METHODID_GET)))
        .addMethod(
          getListMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.ListRequest,
              dev.tumbler.v1.ListResponse>(
                service, METHODID_LIST)))
        .addMethod(
          getUpdateMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.UpdateRequest,
              dev.tumbler.v1.UpdateResponse>(
                service, METHODID_UPDATE)))
        .addMethod(
          getSetActiveMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.SetActiveRequest,
              dev.tumbler.v1.SetActiveResponse>(
                service, METHODID_SET_ACTIVE)))
        .addMethod(
          getRevokeMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.RevokeRequest,
              dev.tumbler.v1.RevokeResponse>(
                service, METHODID_REVOKE)))
        .addMethod(
          getRotateMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.RotateRequest,
              dev.tumbler.v1.RotateResponse>(
                service, METHODID_ROTATE)))
        .addMethod(
          getVerifyMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.VerifyRequest,
              dev.tumbler.v1.VerifyResponse>(
                service, METHODID_VERIFY)))
        .addMethod(
          getBatchVerifyMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.BatchVerifyRequest,
              dev.tumbler.v1.BatchVerifyResponse>(
                service, METHODID_BATCH_VERIFY)))
        .addMethod(
          getWatchMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.tumbler.v1.WatchRequest,
              dev.tumbler.v1.WatchResponse>(
                service, METHODID_WATCH)))
        .addMethod(
          getListEventsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.ListEventsRequest,
              dev.tumbler.v1.ListEventsResponse>(
                service, METHODID_LIST_EVENTS)))
        .addMethod(
          getClaimRotationMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.ClaimRotationRequest,
              dev.tumbler.v1.ClaimRotationResponse>(
                service, METHODID_CLAIM_ROTATION)))
        .addMethod(
          getListDeliveriesMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.ListDeliveriesRequest,
              dev.tumbler.v1.ListDeliveriesResponse>(
                service, METHODID_LIST_DELIVERIES)))
        .addMethod(
          getRedeliverMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.RedeliverRequest,
              dev.tumbler.v1.RedeliverResponse>(
                service, METHODID_REDELIVER)))
        .addMethod(
          getRotateWebhookSecretMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.tumbler.v1.RotateWebhookSecretRequest,
              dev.tumbler.v1.RotateWebhookSecretResponse>(
                service, METHODID_ROTATE_WEBHOOK_SECRET)))
        .build();
  }

  private static abstract class ApiKeyServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    ApiKeyServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.tumbler.v1.ApiKeyServiceOuterClass.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("ApiKeyService");
    }
  }

  private static final class ApiKeyServiceFileDescriptorSupplier
      extends ApiKeyServiceBaseDescriptorSupplier {
    ApiKeyServiceFileDescriptorSupplier() {}
  }

  private static final class ApiKeyServiceMethodDescriptorSupplier
      extends ApiKeyServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    ApiKeyServiceMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (ApiKeyServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new ApiKeyServiceFileDescriptorSupplier())
              .addMethod(getCreateMethod())
              .addMethod(getGetMethod())
              .addMethod(getListMethod())
              .addMethod(getUpdateMethod())
              .addMethod(getSetActiveMethod())
              .addMethod(getRevokeMethod())
              .addMethod(getRotateMethod())
              .addMethod(getVerifyMethod())
              .addMethod(getBatchVerifyMethod())
              .addMethod(getWatchMethod())
              .addMethod(getListEventsMethod())
              .addMethod(getClaimRotationMethod())
              .addMethod(getListDeliveriesMethod())
              .addMethod(getRedeliverMethod())
              .addMethod(getRotateWebhookSecretMethod())
              .build();
        }
      }
    }
    return result;
  }
}
