/** The guard for servlet containers. It needs {@code jakarta.servlet-api}, which the container provides. */
package dev.tumbler.servlet;
