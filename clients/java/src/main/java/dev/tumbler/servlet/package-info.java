/** A guard for servlet containers. Needs {@code jakarta.servlet-api}, which they bring. */
package dev.tumbler.servlet;
