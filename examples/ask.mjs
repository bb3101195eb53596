// Asks an agent and prints its answer as it comes: npm install mqtt && node ask.mjs "Turn on the fan."
import { randomBytes, randomUUID } from "node:crypto";
import mqtt from "mqtt";

const { MQTT_HOST = "127.0.0.1", MQTT_PORT = "1883", MQTT_PASSWORD, AGENT = "edge-01", CLIENT = "me" } = process.env;
const prompt = process.argv[2];
if (!prompt) throw new Error("usage: node ask.mjs PROMPT");

const job = { job_id: randomUUID(), prompt, max_tokens: 200, ttl_s: 300 };
const inbox = `edge/v1/clients/${CLIENT}/inbox`;
const client = mqtt.connect(`mqtt://${MQTT_HOST}:${MQTT_PORT}`, {
  protocolVersion: 5,
  clientId: `${CLIENT}.${randomBytes(16).toString("hex")}`, // who could guess it could take our session
  clean: false,
  properties: { sessionExpiryInterval: 3600 }, // results wait for us while the line is down
  ...(MQTT_PASSWORD ? { username: CLIENT, password: MQTT_PASSWORD } : {}),
});

let accepted = false; // somebody has stored the job
let attempt = 0; // whose text is shown
let seq = -1; // of the newest piece of it
let wait = 5_000;
let timer;
let ended = false;

const publish = (leaf, body) =>
  client.publish(`edge/v1/agents/${AGENT}/cmd/${leaf}/${CLIENT}`, JSON.stringify(body), { qos: 1 });

// The same job sent again is never run twice: send it until somebody answers, then ask only what became of it.
function chase() {
  clearTimeout(timer);
  if (accepted) publish("status", { job_id: job.job_id });
  else publish("job", job);
  timer = setTimeout(chase, accepted ? 30_000 : wait);
  wait = Math.min(wait * 2, 60_000);
}

function end(status, note = "") {
  ended = true;
  clearTimeout(timer);
  process.exitCode = status;
  if (note) console.error(note);
  client.end();
}

client.on("connect", () => client.subscribe(`${inbox}/#`, { qos: 1 }, chase));
client.on("message", (topic, payload) => {
  const [agent, id, leaf] = topic.slice(inbox.length + 1).split("/");
  if (agent !== AGENT || id !== job.job_id) return;
  const told = JSON.parse(payload);
  if (leaf === "status" && told.state === "rejected") {
    if (told.error.code === "unknown_job") accepted = false; // it has lost the job: send it again
    else end(1, `${told.error.code}: ${told.error.message}`);
  } else if (leaf === "status") {
    accepted = true;
  } else if (leaf === "chunk") {
    if (told.attempt > attempt) [attempt, seq] = [told.attempt, -1]; // begun anew
    if (told.attempt < attempt || told.seq !== seq + 1) return; // repeated, or a gap: the result has all
    seq = told.seq;
    process.stdout.write(told.text);
  } else if (leaf === "result") {
    const whole = told.attempt === attempt && told.last_seq === seq;
    process.stdout.write(whole ? "\n" : `\n${told.text}\n`);
    end(told.state === "succeeded" ? 0 : 1, told.error?.message);
  }
});
client.on("error", (error) => {
  if (ended) return; // a broker may hang up before all of our goodbye is read
  if (typeof error.code === "number") end(1, error.message); // it refuses us
  else console.error(`${error.message || error.code}; trying again`);
});
