package dev.tumbler;

import com.google.protobuf.Duration;
import dev.tumbler.v1.VerifyResponse;

/**
 * What the server said of a key.
 *
 * @param record null with MALFORMED and NOT_FOUND
 * @param checkTime the instant that it is true of, by the server's clock, in microseconds since the Unix epoch
 * @param sent when the call was sent, by our monotonic clock, in nanoseconds; before {@code checkTime}, so that what is
 *     counted from it is never too little
 * @param ttl for how long it may be remembered, in nanoseconds
 * @param revision the log position that it reflects
 * @param size bytes of the response
 */
record Answer(Code code, KeyRecord record, long checkTime, long sent, long ttl, long revision, int size) {
    /** Returns what a response about the key of this id says, or null where it decides nothing. */
    static Answer of(VerifyResponse response, String id, long sent) {
        Code code = Code.of(response.getCode());
        if (code == null || response.getValid() != (code == Code.VALID) || !response.hasCheckTime()) {
            return null;
        }
        KeyRecord record = null;
        if (code != Code.MALFORMED && code != Code.NOT_FOUND) {
            if (!response.getKeyId().equals(id)) {
                return null;
            }
            record = KeyRecord.of(response);
        }
        return new Answer(
                code,
                record,
                KeyRecord.micros(response.getCheckTime()),
                sent,
                nanos(response.getCacheTtl()),
                response.getRevision(),
                response.getSerializedSize());
    }

    /** Returns this, or where the key is of no project that is accepted, that there is no such key. */
    Answer of(Projects accepted) {
        return record == null || accepted.accept(record.projectId())
                ? this
                : new Answer(Code.NOT_FOUND, null, checkTime, sent, ttl, revision, size);
    }

    /**
     * Returns the verdict on a demand.
     *
     * @param asked whether it is what the server was asked, but for the projects
     */
    Code decide(VerifyOptions demand, boolean asked, long now) {
        if (record != null && demand.excludes(record.projectId())) {
            return Code.NOT_FOUND;
        }
        return asked ? code : decide(demand, now);
    }

    /** Returns what this makes of other demands than those that it answers; the instant is our monotonic clock's. */
    Code decide(VerifyOptions demand, long now) {
        return code.dependsOnDemand()
                ? Verdict.decide(record, demand, checkTime + (now - sent) / 1_000)
                : code;
    }

    Verification verification(Code verdict, boolean cached) {
        return record == null || verdict == Code.NOT_FOUND ? Verification.unproven(verdict, cached) : record.verification(verdict, cached);
    }

    private static long nanos(Duration span) {
        return span.getSeconds() * 1_000_000_000 + span.getNanos();
    }
}
