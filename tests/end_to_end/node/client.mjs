// Creates a tune and watches it to its end over gRPC, knowing only what the server's reflection tells.
// Arguments: HOST:PORT KEY FILE_ID. Prints the final Tune as JSON.
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

const created = await call("CreateTune", {
  name: "from-node",
  details: {
    lora_tune: {
      base_checkpoint: { checkpoint_id: "tunesmith:tiny-shapes" },
      files: [{ file_id: fileId }],
      steps: 10,
      trigger_words: ["sks"],
    },
  },
});

let events = 0;
for await (const event of tunes.WatchTune({ id: created.id }, metadata)) {
  events += 1;
  if (event.id !== events) throw new Error(`event ${event.id} came as number ${events}`);
}
console.log(JSON.stringify({ ...(await call("GetTune", { id: created.id })), events }));
tunes.close();
