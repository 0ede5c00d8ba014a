/** The guard for gRPC servers. */
package dev.tumbler.grpc;
