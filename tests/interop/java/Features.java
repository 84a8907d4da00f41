import java.util.Arrays;
import java.util.function.BooleanSupplier;

/** How a runner tells what came of a feature. */
final class Features {
    static final String BOOTSTRAP = System.getenv("BOOTSTRAP");
    private static int names;

    interface Attempt {
        void run() throws Exception;
    }

    /** A name that no other run has. */
    static synchronized String topic(String name) {
        return name + "-" + ProcessHandle.current().pid() + "-" + System.currentTimeMillis() + "-" + names++;
    }

    static void check(String feature, Attempt attempt) {
        try {
            attempt.run();
            System.out.println(feature + "\tok\t");
        } catch (Throwable error) {
            error.printStackTrace();
            String line = error.toString().replaceAll("\\s+", " ");
            System.out.println(feature + "\tfail\t" + line.substring(0, Math.min(200, line.length())));
        }
    }

    static void require(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }

    static void same(Object found, Object wanted) {
        boolean same = found instanceof byte[] bytes ? Arrays.equals(bytes, (byte[]) wanted) : found.equals(wanted);
        require(same, found + " is not " + wanted);
    }

    static void eventually(BooleanSupplier condition, String what) throws InterruptedException {
        for (long end = System.currentTimeMillis() + 30_000; !condition.getAsBoolean(); Thread.sleep(50)) {
            require(System.currentTimeMillis() < end, what);
        }
    }
}
