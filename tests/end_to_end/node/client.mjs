// Creates a tune and watches it to its end over gRPC, and cancels another, knowing only what the server's reflection tells.
// Arguments: HOST:PORT KEY FILE_ID. Prints the final tunes as JSON.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { GrpcReflection } from "grpc-js-reflection-client";

const [address, key, fileId] = process.argv.slice(2);
const insecure = grpc.credentials.createInsecure();

const reflection = new GrpcReflection(address, insecure);
const descriptor = await reflection.getDescriptorBySymbol("tunesmith.v1.TuneService");
const options = { keepCase: true, longs: Number, enums: String, defaults: true };
const services = grpc.loadPackageDefinition(descriptor.getPackageDefinition(options));

const tunes = new services.tunesmith.v1.TuneService(address, insecure);
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${key}`);

const call = (method, request) =>
  new Promise((resolve, reject) =>
    tunes[method](request, metadata, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const create = (name, checkpoint) =>
  call("CreateTune", {
    name,
    details: {
      lora_tune: {
        base_checkpoint: { checkpoint_id: checkpoint },
        files: [{ file_id: fileId }],
        steps: 10,
        trigger_words: ["sks"],
      },
    },
  });

// Watches a tune until it has ended; returns it with the number of its events.
const ended = async (id) => {
  let events = 0;
  for await (const event of tunes.WatchTune({ id }, metadata)) {
    events += 1;
    if (event.id !== events) throw new Error(`event ${event.id} came as number ${events}`);
  }
  return { ...(await call("GetTune", { id })), events };
};

// The second wants an engine that no trainer offers: it is pending until it is cancelled, while it is watched.
const [trained, waiting] = [
  await create("from-node", "tunesmith:tiny-shapes"),
  await create("cancelled-from-node", "octoai:default-sdxl"),
];
const watched = ended(waiting.id);
const answered = await call("CancelTune", { id: waiting.id });
const refused = await call("CancelTune", { id: "tune_unknown" }).catch((error) => error.code);

console.log(
  JSON.stringify({
    trained: await ended(trained.id),
    cancelled: await watched,
    answered: answered.status,
    refused: grpc.status[refused],
  }),
);
tunes.close();
