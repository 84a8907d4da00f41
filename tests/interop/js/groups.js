// What members of a group see.
const assert = require('assert')
const { execFileSync } = require('child_process')

const PARTITIONS = 4
const SETTLES = 30000
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time))

async function eventually(condition, what) {
  for (const end = Date.now() + SETTLES; !condition(); await pause(50)) assert(Date.now() < end, what)
}

async function member(kafka, groupId, name) {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 1000 })
  const seen = { records: [], assigned: [] }
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    seen.assigned = payload.memberAssignment[name] || []
  })
  await consumer.connect()
  await consumer.subscribe({ topics: [name], fromBeginning: true })
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message }) => seen.records.push({ partition, offset: Number(message.offset) }),
  })
  const commit = async () => {
    const ends = new Map(seen.records.map(({ partition, offset }) => [partition, offset + 1]))
    const offsets = [...ends].map(([partition, offset]) => ({ topic: name, partition, offset: `${offset}` }))
    await consumer.commitOffsets(offsets)
  }
  return Object.assign(seen, { commit, end: () => consumer.disconnect() })
}

function shared(...members) {
  const all = new Set(members.flatMap((one) => one.assigned))
  const each = PARTITIONS / members.length
  return all.size === PARTITIONS && members.every((one) => one.assigned.length === each)
}

function quipu(input, ...options) {
  const { QUIPU, GRPC } = process.env
  return execFileSync(QUIPU, [...options, '--broker', GRPC], { input, encoding: 'utf8' })
}

const numbered = (count) => [...Array(count).keys()].map((i) => ({ key: `k${i}`, value: `value ${i}` }))

// The first messages of a topic.
async function readAll(kafka, groupId, name, count) {
  const consumer = kafka.consumer({ groupId })
  const messages = []
  await consumer.connect()
  await consumer.subscribe({ topics: [name], fromBeginning: true })
  await consumer.run({ eachMessage: async ({ message }) => messages.push(message) })
  await eventually(() => messages.length >= count, 'not all was read')
  await consumer.disconnect()
  return messages
}

module.exports = { groups, quipu, readAll }

async function groups({ kafka, admin, check, newTopic, topic, produce }) {
  const scenario = (feature, run) =>
    check(feature, async () => {
      const [name, group] = [await newTopic('group', PARTITIONS), topic('g')]
      return run(name, group, () => member(kafka, group, name))
    })

  await scenario('group shares partitions', async (_name, _group, start) => {
    const first = await start()
    await eventually(() => shared(first), 'the only member has not all')
    const second = await start()
    await eventually(() => shared(first, second), 'the partitions are not shared')
    await second.end()
    await eventually(() => shared(first), 'who is left has not all')
    await first.end()
  })
  await scenario('group commits and resumes', async (name, _group, start) => {
    await produce(name, numbered(20))
    const first = await start()
    await eventually(() => first.records.length === 20, 'not all was read')
    await first.commit()
    await first.end()
    await produce(name, numbered(5))
    const second = await start()
    await eventually(() => second.records.length >= 5, 'what is new was not read')
    await pause(1000)
    await second.end()
    assert.strictEqual(second.records.length, 5)
  })
  await check('group, cooperative', async () => 'the client has no such assignor')
  await check('group, topics by pattern', async () => {
    const stem = topic('stem')
    for (const [name, count] of [[`${stem}-a`, 5], [`${stem}-b`, 7], ['other', 3]]) {
      await produce(await newTopic(name), numbered(count))
    }
    const first = await member(kafka, topic('g'), new RegExp(`^${stem}.*`))
    await eventually(() => first.records.length >= 12, 'not all was read')
    await pause(1000)
    await first.end()
    assert.strictEqual(first.records.length, 12)
  })
  await check('group, static member', async () => 'the client has no static members')
  await scenario('group seen by admin', async (name, group, start) => {
    await produce(name, numbered(1))
    const first = await start()
    await eventually(() => first.records.length === 1, 'nothing was read')
    await first.commit()
    await first.end()
    const listed = async () => (await admin.listGroups()).groups.some(({ groupId }) => groupId === group)
    assert(await listed())
    assert.strictEqual((await admin.describeGroups([group])).groups[0].state, 'Empty')
    assert.strictEqual((await admin.fetchOffsets({ groupId: group }))[0].topic, name)
    await admin.deleteGroups([group])
    assert(!(await listed()))
  })
  await scenario('group with gRPC', async (name, group, start) => {
    quipu(numbered(40).map(({ value }) => `${value}\n`).join(''), 'produce', name)
    const first = await start()
    await eventually(() => first.records.length === 40, 'not all was read')
    await first.commit()
    const shown = JSON.parse(quipu('', 'group', 'describe', group, '--json'))
    assert.strictEqual(shown.members.length, 1)
    assert.strictEqual(shown.partitions.reduce((sum, { offset }) => sum + offset, 0), 40)
    assert.strictEqual(shown.partitions.reduce((sum, { lag }) => sum + lag, 0), 0)
    await first.end()
    quipu('', 'group', 'reset-offsets', group, '--topic', name, '--to', 'earliest')
    const again = await start()
    await eventually(() => again.records.length === 40, 'not all was read again')
    await again.end()
  })
}
