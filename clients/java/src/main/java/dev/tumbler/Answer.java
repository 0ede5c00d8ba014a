package dev.tumbler;

import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import dev.tumbler.v1.VerifyResponse;
import java.util.concurrent.TimeUnit;

/**
 * The server's answer about a key.
 *
 * @param record null with MALFORMED and NOT_FOUND; also with UNSPECIFIED if its times do not exist
 * @param checkTime the instant of the verdict by the server's clock, in microseconds since the Unix epoch
 * @param sentAt when the call was sent, by the client's monotonic clock, in nanoseconds. That is before {@code
 *     checkTime}, so the time that is counted from it is never too short
 * @param ttl how long the answer may be cached, in nanoseconds
 * @param revision the log position that the answer reflects
 * @param size the size of the response in bytes
 */
record Answer(Code code, KeyRecord record, long checkTime, long sentAt, long ttl, long revision, int size) {
    /**
     * Returns the answer in a response about the key with this id, or null if the response decides nothing or
     * contradicts itself.
     *
     * @param sent the demand that was sent to the server; its projects were not
     */
    static Answer of(VerifyResponse response, String id, VerifyOptions sent, long sentAt) {
        Code code = Code.of(response.getCode());
        if (code == null || response.getValid() != (code == Code.VALID)) {
            return null;
        }
        KeyRecord record = null;
        long checkTime = KeyRecord.micros(response.getCheckTime());
        if (code != Code.MALFORMED && code != Code.NOT_FOUND) {
            boolean hasValidTimes = hasValidTimes(response);
            if (!response.getKeyId().equals(id) || (!hasValidTimes && code != Code.UNSPECIFIED)) {
                return null;
            }
            record = hasValidTimes ? KeyRecord.of(response) : null;
            VerifyOptions asked = new VerifyOptions(sent.requiredScopes(), sent.clientIp(), sent.environmentId());
            if (code.dependsOnDemand() && Verdict.decide(record, asked, checkTime) != code) {
                return null;
            }
        }
        return new Answer(
                code,
                record,
                checkTime,
                sentAt,
                nanos(response.getCacheTtl()),
                response.getRevision(),
                response.getSerializedSize());
    }

    /** Returns this answer, or NOT_FOUND if the key belongs to a project that is not accepted. */
    Answer of(Projects accepted) {
        return record == null || accepted.accept(record.projectId())
                ? this
                : new Answer(Code.NOT_FOUND, null, checkTime, sentAt, ttl, revision, size);
    }

    /**
     * Returns the verdict's code for a demand.
     *
     * @param wasSent whether this is the demand that was sent to the server, apart from the projects
     */
    Code decide(VerifyOptions demand, boolean wasSent, long now) {
        if (record != null && demand.excludes(record.projectId())) {
            return Code.NOT_FOUND;
        }
        return wasSent ? code : decide(demand, now);
    }

    /** Decides on another demand than the one that was sent. {@code now} is the client's monotonic clock. */
    Code decide(VerifyOptions demand, long now) {
        return code.dependsOnDemand()
                ? Verdict.decide(record, demand, checkTime + (now - sentAt) / 1_000)
                : code;
    }

    Verification verification(Code verdict, boolean cached) {
        return record == null || verdict == Code.NOT_FOUND ? Verification.unproven(verdict, cached) : record.verification(verdict, cached);
    }

    /** Returns whether an answer about a proven key has a check time, and all its times exist. */
    private static boolean hasValidTimes(VerifyResponse response) {
        return response.hasCheckTime()
                && exists(response.getCheckTime())
                && exists(response.getExpireTime())
                && exists(response.getGraceExpireTime());
    }

    /** Returns whether a time is one of the years 1 to 9999, as protobuf demands. */
    private static boolean exists(Timestamp time) {
        return time.getSeconds() >= -62_135_596_800L
                && time.getSeconds() <= 253_402_300_799L
                && time.getNanos() >= 0
                && time.getNanos() < 1_000_000_000;
    }

    /** Returns a lifetime in nanoseconds: 0 to a day and some seconds, so that no sum overflows. */
    private static long nanos(Duration span) {
        long seconds = Math.max(-86_400, Math.min(span.getSeconds(), 86_400));
        return Math.max(0, TimeUnit.SECONDS.toNanos(seconds) + span.getNanos());
    }
}
