// A worker in another language: it sums up each evaluation of a run, with nothing of resia but the published schema.
//
//   resia worker grant --role board --emits board_evaluation-summarised --json > login.json
//   npm ci && node worker.js login.json RUN ../../docs/events/events.schema.json

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import Ajv2020 from "ajv/dist/2020.js";

const ROLE = "board";
const CONSUMES = "evaluation-completed";
const EMITS = "board_evaluation-summarised";
const ENDS = ["run-completed", "run-failed"];
const WRONG_LAST_SEQUENCE = 10071;

const [loginFile, run, schemaFile] = process.argv.slice(2);
const login = JSON.parse(readFileSync(loginFile, "utf8"));
const schema = JSON.parse(readFileSync(schemaFile, "utf8"));
const ajv = new Ajv2020({ strict: false });
ajv.addSchema(schema, "events");
const isEvent = ajv.compile({ $ref: "events" });

// SHA-256 over the parts, each after its length in bytes as 8 bytes, big-endian: the first 26 hex digits.
export function eventId(run, cause, handler, ordinal) {
  const digest = createHash("sha256");
  for (const part of ["event", run, cause, handler, String(ordinal)]) {
    const bytes = Buffer.from(part, "utf8");
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(bytes.length));
    digest.update(length).update(bytes);
  }
  return digest.digest("hex").slice(0, 26);
}

function summary(event, sequence) {
  const id = eventId(run, event.id, `${ROLE}.perform.${CONSUMES}`, 0);
  const means = Object.fromEntries(Object.entries(event.payload.scores).map(([split, score]) => [split, score.mean]));
  return {
    id,
    run,
    type: EMITS,
    version: 1,
    cause: event.id,
    basis: sequence, // the last event that this worker has seen
    producer: { role: ROLE, worker: `node-${process.pid}`, package: "resia-node-worker 1.0.0" },
    recorded_at: Date.now() / 1000,
    payload: { iteration: event.payload.iteration, means },
  };
}

// Nothing may stand on the subject yet, so a second time changes nothing and is no error.
async function append(js, event) {
  const subject = `resia.${run}.${ROLE}.${event.type}.${event.id}`;
  try {
    await js.publish(subject, JSON.stringify(event), { expect: { lastSubjectSequence: 0 } });
    return "appended";
  } catch (cause) {
    if (cause.code !== WRONG_LAST_SEQUENCE) throw cause;
    return "there already";
  }
}

const connection = await connect({
  servers: login.url,
  user: login.user,
  pass: login.password,
  inboxPrefix: login.inbox,
});
const stream = `RUN-${run}`;
const manager = await jetstreamManager(connection);
await manager.consumers.add(stream, {
  durable_name: login.durable,
  filter_subjects: [CONSUMES, ...ENDS].map((type) => `resia.${run}.*.${type}.*`),
  ack_policy: "explicit",
  ack_wait: 8e9,
});
const js = jetstream(connection);
const consumer = await js.consumers.get(stream, login.durable);
for await (const message of await consumer.consume({ max_messages: 1 })) {
  const event = message.json();
  if (!isEvent(event)) {
    console.error(`event ${message.seq} does not fit the schema: ${ajv.errorsText(isEvent.errors)}`);
  } else if (event.type === CONSUMES) {
    console.log(`event ${message.seq}: ${await append(js, summary(event, message.seq))}`);
  }
  await message.ackAck(); // only now: whoever dies before is followed by one that does it again
  if (ENDS.includes(event.type)) break;
}
await connection.drain();
