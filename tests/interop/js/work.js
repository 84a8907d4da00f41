// A client at work for as long as its standard input is open, while others kill nodes.
const EVERY = 5
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time))

async function produce(kafka, topic, ends) {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  const waiting = []
  for (let number = 0; !ends(); number++) {
    const sent = producer.send({ topic, acks: -1, messages: [{ value: `${number}` }] })
    waiting.push(sent.then(() => console.log(`acked ${number}`), (error) => console.error(String(error))))
    await pause(EVERY)
  }
  await Promise.all(waiting)
  await producer.disconnect()
}

async function consume(kafka, groupId, topic, ends) {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 1000 })
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  await consumer.run({
    eachMessage: async ({ partition, message }) => console.log(`read ${partition} ${message.offset}`),
  })
  while (!ends()) await pause(100)
  await consumer.disconnect()
}

// Does `produce TOPIC` or `consume GROUP TOPIC`.
module.exports = async function work(kafka, [mode, ...where]) {
  let ended = false
  process.stdin.on('end', () => { ended = true }).resume()
  await (mode === 'produce' ? produce : consume)(kafka, ...where, () => ended)
}
